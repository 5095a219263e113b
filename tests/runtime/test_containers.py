"""A job's command in a real container: what it sees, how it ends, and what is left.

Long because every way to start and to end a container is tried here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from node_run import NodeRun
from support.container_images import Podman, make_rootfs

from periflow_ray.errors import JobFailedError
from periflow_ray.processes import keeper
from periflow_ray.runtime.environments.container import Container, label_of
from periflow_ray.runtime.environments.engine import Engine, Image
from periflow_ray.runtime.member.sandbox import Sandbox
from periflow_ray.runtime.member.stacks import dump_stacks
from periflow_ray.runtime.monitor.contract import EndAttempt

pytestmark = pytest.mark.usefixtures("sandboxes")


SEES = """
cd /workspace
echo "$(pwd) $FROM_IMAGE $CKPT_DIR $MY_SECRET [$TEMPLATE] $(id -u)"
echo "$DOCKER_TOKEN $HOME [$(env | grep GIVEN)]"
python - <<'END'
import importlib.util, os, sys
print("sdk", importlib.util.find_spec("periflow_ray") is not None, importlib.util.find_spec("ray"))
print("path", sys.path[1:3] == [os.environ["PYTHONPATH"].split(":")[0], "/opt/of-image"])
import periflow_ray as pf
pf.init(total_train_steps=2)
with pf.train_step():
    pass
open(os.environ["CKPT_DIR"] + "/a", "w").write("1")
os.chmod(os.environ["CKPT_DIR"] + "/a", 0o600)
with pf.train_step():
    pass
END
"""


# The engine's client would take them for its own.
OF_CLIENT = {"DOCKER_TOKEN": 'a "$HOME" `token`', "HOME": "/a/home"}


def test_a_value_is_in_no_command_line(tmp_path: Path) -> None:
    container = Container(Engine("podman", "podman", "5", "0:0"), Image("a", "sha256:1"), tmp_path, ())
    start = container.start("true", {**OF_CLIENT, "TOKEN": "b"}, client_environment={"HOME": "/b"}, working_dir="/")
    assert {'a "$HOME" `token`', "/a/home", "b"} <= set(start.env.values())
    assert start.env["HOME"] == "/b"
    assert not [argument for argument in start.argv if "`token`" in argument or "/a/home" in argument]


def test_a_command_sees_the_image_the_job_and_the_sdk(
    podman: Podman, image: str, make_run: Callable[..., NodeRun]
) -> None:
    run = make_run(SEES, image, env_var={"TEMPLATE": "two\nlines /workspace", "PATH": os.defpath, **OF_CLIENT})
    run.start()
    assert run.finish() is None, run.lines()
    assert run.lines() == [
        "/workspace yes /workspace/ckpt of the job [two",
        "lines /workspace] 0",
        'a "$HOME" `token` /a/home []',
        "sdk True None",
        "path True",
    ]
    assert run.notes[0].startswith(f"runs in the image {image} (sha256:")
    assert run.shell.output_dir is not None
    assert (run.shell.output_dir / "a").read_text() == "1"


TIDIES_UP = """
python - <<'END' &
import signal, sys, time
def tidy(*_):
    print("tidies up", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, tidy)
print("ready", flush=True)
time.sleep(1000)
END
setsid sh -c 'trap "" TERM; while :; do sleep 1; done' &
wait; wait; echo "never comes"; sleep 1000
"""


def test_a_stop_lets_the_script_tidy_up_and_leaves_nothing(
    podman: Podman, image: str, make_run: Callable[..., NodeRun], wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    run = make_run(TIDIES_UP, image)
    run.start()
    wait_until(lambda: "ready" in run.lines())
    run.shell.end(EndAttempt("stop"))
    assert run.finish() is not None
    assert "tidies up" in run.lines()
    assert find_marked(run) == []


@pytest.mark.parametrize("victim", ["client", "first process", "keeper", "container"])
def test_whatever_is_killed_ends_the_attempt_and_the_next_one_runs(
    podman: Podman,
    image: str,
    make_run: Callable[..., NodeRun],
    wait_until: Callable[[Callable[[], bool]], None],
    victim: str,
) -> None:
    run = make_run("[ $PERIFLOW_ATTEMPT = 1 ] || exit 0; echo ready; sleep 1000 & sleep 1000", image)
    run.start()
    wait_until(lambda: "ready" in run.lines())
    [container] = podman.list_containers()
    pid = int(podman.run("inspect", "--format", "{{.State.Pid}}", container))
    match victim:
        case "first process":
            os.kill(pid, signal.SIGKILL)
        case "container":
            podman.run("kill", container)
        case "client":
            os.kill(find_process("/podman", "run"), signal.SIGKILL)
        case "keeper":
            os.kill(find_process(sys.executable, "-I", keeper.__file__), signal.SIGKILL)
    failure = run.finish()
    assert failure is not None
    assert find_marked(run) == []
    assert podman.list_containers() == []
    run.start(attempt=2)
    assert run.finish() is None


def test_a_container_that_a_killed_agent_left_is_ended_by_the_next_attempt(
    podman: Podman, image: str, make_run: Callable[..., NodeRun]
) -> None:
    run = make_run("true", image)
    label = label_of(Sandbox(run.root.uri, 1, 0).directory)
    podman.run("run", "--detach", "--network=host", "--label", label, image, "sleep", "1000")
    run.start()
    assert run.finish() is None
    assert "ended a container, left over from an earlier attempt on this node" in run.notes


@pytest.mark.parametrize(
    ("command", "exit_code", "hint"),
    [
        ("exit 3", 3, None),
        ("kill -SEGV $$", 139, None),
        ("no-such-program", 127, "the program 'no-such-program' is not installed"),
        ("exec python -c 'a = bytearray(1 << 30)'", 137, "memory of its container was full"),
    ],
    ids=["exit", "signal", "missing", "memory"],
)
def test_the_end_of_a_command_is_told_as_without_a_container(
    podman: Podman, image: str, make_run: Callable[..., NodeRun], command: str, exit_code: int, hint: str | None
) -> None:
    run = make_run(command, image, options=["--memory=128m"])
    run.start()
    failure = run.finish()
    assert failure is not None
    assert failure.exit_code == exit_code
    assert (failure.hint or "").find(hint or "") >= 0


def test_processes_of_a_container_are_known_as_this_machine_counts_them(
    podman: Podman, image: str, make_run: Callable[..., NodeRun], wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    script = "import periflow_ray as pf, time; pf.init(total_train_steps=9); print('ready'); time.sleep(1000)"
    run = make_run(f'python -c "{script}"', image)
    run.start()
    wait_until(lambda: "ready" in run.lines())
    pids = run.shell.pids()
    assert "python" in Path(f"/proc/{pids[0]}/cmdline").read_text()
    assert any("MainThread" in line for line in dump_stacks(pids[0]))
    os.kill(pids[0], signal.SIGKILL)
    assert run.finish() is not None


def test_what_another_user_in_the_container_wrote_can_be_read_and_removed(
    podman: Podman, image: str, make_run: Callable[..., NodeRun]
) -> None:
    run = make_run(
        "chmod 777 /workspace $CKPT_DIR; exec setpriv --reuid 65534 --regid 65534 --clear-groups "
        "sh -c 'umask 077; echo text >$CKPT_DIR/a; mkdir /workspace/of-nobody; id -u'",
        image,
    )
    run.start()
    run.finish()
    assert run.lines() == ["65534"]
    sandbox = Sandbox(run.root.uri, 1, 0)
    assert sandbox.path_of("/workspace/ckpt/a").read_text() == "text\n"
    sandbox.remove()
    assert not sandbox.directory.exists()


@pytest.mark.parametrize("is_required", [False, True])
def test_without_an_engine_the_image_is_not_used_or_the_job_fails(
    make_run: Callable[..., NodeRun], monkeypatch: pytest.MonkeyPatch, is_required: bool
) -> None:
    monkeypatch.setenv("PERIFLOW_CONTAINER_ENGINE", "no-such-engine")
    run = make_run("echo here", "an/image:1", require_image=is_required)
    if is_required:
        with pytest.raises(JobFailedError, match="'an/image:1' is not used on node 0: no-such-engine is not installed"):
            run.start()
        return
    run.start()
    run.finish()
    assert run.lines() == ["here"]
    assert run.notes[0] == (
        "the image 'an/image:1' is not used on node 0: no-such-engine is not installed. Install Docker or Podman "
        "there. The command runs in the cluster's Python environment"
    )


def test_variables_that_the_engine_would_read_reach_the_command_alone(
    podman: Podman, image: str, make_run: Callable[..., NodeRun], wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    given = {
        "DOCKER_PASSWORD": "of-docker-'\"$HOME\n",
        "REGISTRY_TOKEN": "of-a-registry",
        "STORAGE_DRIVER": "zfs",
        "CONTAINERS_CONF": "/nowhere",
        "LISTEN_FDS": "3",
        "LD_LIBRARY_PATH": "/of-libraries",
        "HOME": "/of-home",
        "PATH": f"{os.defpath}:/of-path",
    }
    program = "import json, os; print(json.dumps(dict(os.environ)), flush=True); import time; time.sleep(1000)"
    run = make_run(f"python -c '{program}'", image, env_var=given)
    run.start()
    wait_until(lambda: run.lines() != [])
    arguments = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in keeper.find_descendants(os.getpid()))
    run.shell.end(EndAttempt())
    run.finish()
    seen = json.loads(run.lines()[0])
    assert {name: seen[name] for name in given} == given
    assert not [name for name in seen if name.startswith("PERIFLOW_GIVEN")]
    assert b"of-docker" not in arguments
    assert b"of-a-registry" not in arguments


def test_a_container_with_the_nodes_shared_memory_is_started(
    podman: Podman, image: str, make_run: Callable[..., NodeRun]
) -> None:
    run = make_run("echo here", image, options=["--ipc=host"])
    run.start()
    assert run.finish() is None


def test_an_image_without_a_shell_is_told_as_such(podman: Podman, image: str, make_run: Callable[..., NodeRun]) -> None:
    run = make_run("true", image, workspace="/usr")
    run.start()
    failure = run.finish()
    assert failure is not None
    assert (failure.hint or "").startswith("the image has no shell (sh), with which a command is started")


def test_a_job_does_not_go_on_in_another_python_when_its_image_is_gone(
    podman: Podman, make_run: Callable[..., NodeRun], tmp_path: Path
) -> None:
    # The content must be another one, or it is still there under its other name.
    rootfs = tmp_path / "rootfs"
    make_rootfs(rootfs)
    name = podman.make_image("localhost/gone:1", rootfs)
    run = make_run("exit 3", name)
    run.start()
    run.finish()
    podman.run("rmi", name)
    run.start(attempt=2)
    failure = run.finish()
    assert failure is not None
    assert failure.exit_code == 125
    with pytest.raises(JobFailedError, match="in which the job ran until now, is not on this machine any more"):
        run.start(attempt=3)
    run.shell.close()


def test_an_engine_that_is_gone_is_told_as_such(
    podman: Podman, image: str, make_run: Callable[..., NodeRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "podman"
    program.symlink_to(shutil.which("podman") or "")
    monkeypatch.setenv("PERIFLOW_CONTAINER_ENGINE", str(program))
    run = make_run("exit 3", image)
    run.start()
    run.finish()
    program.unlink()
    with pytest.raises(JobFailedError, match="podman is not on node 0 any more"):
        run.start(attempt=2)
    run.shell.close()


def find_process(*words: str) -> int:
    """The one process below this one whose command line begins with words that end like these."""
    found = []
    for pid in keeper.find_descendants(os.getpid()):
        with contextlib.suppress(OSError):  # It has ended meanwhile.
            arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if len(arguments) > len(words) and all(map(str.endswith, arguments, words)):
                found.append(pid)
    (pid,) = found
    return pid


def find_marked(run: NodeRun) -> list[int]:
    """Processes of the run's sandbox that are still there."""
    name, value = Sandbox(run.root.uri, 1, 0).marker
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{name}={value}".encode() in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return found
