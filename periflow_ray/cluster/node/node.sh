#!/usr/bin/env bash
# What a node of a cluster runs: node.sh setup | head | worker HEAD_ADDRESS. Ray's cluster launcher copies it there.
#
# With it come ~/periflow-ray/wheels, periflow-ray and what it needs, and ~/.ray/auth_token, the cluster's token.
set -euo pipefail

here=$HOME/periflow-ray
environment=$here/env
token=$HOME/.ray/auth_token

# Every process of Ray asks for the token and gives it; nothing is sent to anybody about the use of Ray.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token RAY_USAGE_STATS_ENABLED=0
# Ray's launcher sets it to 1 for whatever it runs, so for all that Ray starts: user code would compute on one core.
unset OMP_NUM_THREADS

find_python() {
    # GPU images keep PyTorch in an environment of their own.
    for python in "${PERIFLOW_PYTHON:-}" /opt/pytorch/bin/python3 /opt/conda/bin/python3 python3.12 python3.11 python3.10 python3; do
        if [ -n "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    echo "periflow-ray needs Python 3.10 or newer on the image; set PERIFLOW_PYTHON to its path" >&2
    return 1
}

setup() {
    [ -s "$token" ] || { echo "there is no token in $token" >&2; exit 1; }
    chmod 700 "$(dirname "$token")"
    chmod 600 "$token"
    python=$(find_python)
    "$python" -m venv --without-pip "$environment"
    # The image's own packages stay usable: its PyTorch knows its driver.
    "$python" -c 'import sys; print(*sys.path, sep="\n")' |
        { grep '/\(site\|dist\)-packages$' || true; } >"$(echo "$environment"/lib/python3.*/site-packages)/image.pth"
    # Itself in any case: the image or an earlier setup may have another one. Then what of its needs is not there, with
    # the SDKs of the clouds: the head launches nodes by them.
    for options in "--no-deps --force-reinstall" ""; do
        # shellcheck disable=SC2086
        "$python" -m pip --python "$environment/bin/python" install --quiet --disable-pip-version-check \
            --no-index --find-links "$here/wheels" $options 'periflow-ray[aws,azure]'
    done
    if [ -s "$here/wheels/requirements.txt" ]; then
        "$python" -m pip --python "$environment/bin/python" install --quiet --disable-pip-version-check \
            --no-index --find-links "$here/wheels" --requirement "$here/wheels/requirements.txt"
    fi
    line=". $here/profile.sh"
    printf 'export PATH=%q:$PATH RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=%q RAY_USAGE_STATS_ENABLED=0\n' \
        "$environment/bin" "$token" >"$here/profile.sh"
    grep -qxF "$line" ~/.bashrc 2>/dev/null || echo "$line" >>~/.bashrc
}

# Ray's processes of this node, and the watcher that hears of the cloud's notices.
start() {
    . "$here/profile.sh"
    ulimit -n "$(ulimit -Hn)"
    # Of an earlier start, also of one that was cut off.
    if [ -e /tmp/ray ]; then
        ray stop >/dev/null
    fi
    ray start --object-manager-port=8076 --disable-usage-stats "$@"
}

# Starts one of periflow-ray's programs, which ends with the node; takes its name, its module and what that is given.
keep_running() {
    name=$1 module=$2
    shift 2
    # One that is left of an earlier start would do everything a second time.
    old=$(cat "$here/$name.pid" 2>/dev/null || true)
    if [ -n "$old" ] && grep -qs "$module" "/proc/$old/cmdline"; then
        kill "$old"
    fi
    setsid python -m "$module" "$@" >>"$here/$name.log" 2>&1 </dev/null &
    echo $! >"$here/$name.pid"
}

watch_notices() {
    keep_running watcher periflow_ray.runtime.notices.watcher --address "$1"
}

case "${1:-}" in
setup)
    setup
    ;;
head)
    # A node that is gone is noticed after 6 s, where Ray's own values take a minute.
    export RAY_health_check_initial_delay_ms=5000 RAY_health_check_period_ms=1000
    export RAY_health_check_timeout_ms=1000 RAY_health_check_failure_threshold=3
    # Of several machines some may not come: they are asked for again after a minute, where Ray's own value is ten.
    export RAY_AUTOSCALER_RECONCILE_REQUEST_STATUS_TIMEOUT_S=60
    # How often its autoscaler looks: EC2 tells of all machines at once, where Ray asks Azure for each one by itself.
    if grep -qs '"type": "aws"' "$HOME/ray_bootstrap_config.yaml"; then
        export AUTOSCALER_UPDATE_INTERVAL_S=2
    fi
    start --head --port=6379 --dashboard-host=127.0.0.1 --dashboard-port=8265 \
        --autoscaling-config="$HOME/ray_bootstrap_config.yaml"
    watch_notices 127.0.0.1:6379
    # What keeps the cluster's account and ends it in time; a cluster of plain `ray up` has none.
    if [ -s "$here/about.json" ]; then
        keep_running warden periflow_ray.runtime.head.warden --about "$here/about.json"
    fi
    ;;
worker)
    start --address="$2:6379"
    watch_notices "$2:6379"
    ;;
*)
    echo "usage: node.sh setup | head | worker HEAD_ADDRESS" >&2
    exit 2
    ;;
esac
