"""The process that owns the embedded cluster: starts the Ray head under a keeper, ends it when it is idle.

python -m periflow_ray.submit.local_supervisor DIRECTORY
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from periflow_ray.errors import ClusterError, NewerFormatError
from periflow_ray.jobs.stop_times import RAY_STOP_WAIT_S
from periflow_ray.loops import Faults
from periflow_ray.plan import drop_internal_variables
from periflow_ray.private_files import hold_directory, make_own_directory
from periflow_ray.processes import Command
from periflow_ray.ray_jobs import RayJobs, connect
from periflow_ray.submit.local_cluster import START_TIMEOUT_S, ClusterFacts, LocalCluster, LocalClusterDir

IDLE_VARIABLE = "PERIFLOW_LOCAL_IDLE_S"
DEFAULT_IDLE_S = 600.0
IDLE_POLL_S = 5.0
# Ray needs a few seconds to say goodbye; its own processes are ended one by one.
GRACE_S = 5.0
# Training data does not go through Ray's object store, so a small one leaves the laptop its memory.
OBJECT_STORE_BYTES = 128 << 20
# Names of Ray's system configuration go on in small letters: RAY_health_check_timeout_ms.
_RAY_CONFIGURATION = re.compile(r"RAY_(?:[a-z]|TRAIN_|BACKEND_LOG_LEVEL$)")
# The shell's own values come before these. Most switch off statistics that nobody looks at here, in each of Ray's
# processes: a training that needs all cores waits for them.
_DEFAULTS = {
    # Ray ends workers when the machine's memory is nearly full. On this machine that are other programs, and the kernel
    # would end the largest process, as it does with a training that is started by hand.
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "METRICS_RECORD_INTERVAL_S": "60",
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "60",
    "EVENT_AGENT_REPORT_INTERVAL_SECONDS": "5",
    "NODE_STATS_UPDATE_INTERVAL_SECONDS": "60",
    "RAY_DASHBOARD_AGGREGATOR_AGENT_CHECK_MAIN_THREAD_LIVENESS_INTERVAL_SECONDS": "1",
}


def main() -> None:
    """Run the cluster of the directory named on the command line until it is idle or this process is told to end."""
    directory = LocalClusterDir(Path(sys.argv[1]))
    try:
        temp_dir = _make_temp_dir()
    except PermissionError as err:
        sys.exit(str(err))
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    port = _free_ports(1)[0]
    head = Command(
        _head_argv(port, temp_dir),
        env=_head_env(directory, temp_dir),
        working_dir=Path("/"),
        grace_s=GRACE_S,
        on_line=lambda line: print(line, flush=True),
    ).start()
    threading.Thread(target=_set_when_ended, args=(head, ending), daemon=True).start()
    jobs = connect(f"http://127.0.0.1:{port}", directory.token_path)
    try:
        if _wait_until_ready(jobs, ending):
            directory.touch()
            directory.write(LocalCluster(jobs.address, os.getpid(), ClusterFacts.of_this_process()))
            _wait_until_idle(jobs, directory, ending)
    finally:
        if _is_current(directory):
            directory.forget()
            # Of jobs whose drivers did not come to read them.
            shutil.rmtree(directory.cloud_environment_dir, ignore_errors=True)
        head.stop()
        head.wait()
        shutil.rmtree(temp_dir, ignore_errors=True)


def _set_when_ended(head: Command, ending: threading.Event) -> None:
    try:
        head.wait()
    finally:
        ending.set()


def _make_temp_dir() -> Path:
    # Short, because sockets below it may have 107 bytes at most, and the supervisor's own, because two Rays in one
    # directory hang.
    base = Path(f"/tmp/periflow-{os.getuid()}-ray")
    make_own_directory(base)
    for left in base.iterdir():
        if not Path("/proc", left.name).exists():  # Its supervisor was killed before it could clean up.
            shutil.rmtree(left, ignore_errors=True)
    temp_dir = base / str(os.getpid())
    temp_dir.mkdir(mode=0o700)
    # As long as this process lives.
    hold_directory(temp_dir)
    return temp_dir


def _head_argv(dashboard_port: int, temp_dir: Path) -> list[str]:
    gcs, client, agent_listen, agent_grpc, metrics = _free_ports(5)
    options = {
        "node-ip-address": "127.0.0.1",
        "port": gcs,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard_port,
        "include-dashboard": "true",
        "dashboard-agent-listen-port": agent_listen,
        "dashboard-agent-grpc-port": agent_grpc,
        "ray-client-server-port": client,
        "metrics-export-port": metrics,
        "object-store-memory": OBJECT_STORE_BYTES,
        "include-log-monitor": "false",
        "temp-dir": temp_dir,
    }
    return [
        # Not the program "ray", which is elsewhere if Ray is not installed in this very environment.
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        # Nothing scales this cluster up.
        "--no-monitor",
        *(f"--{k}={v}" for k, v in options.items()),
    ]


def _head_env(directory: LocalClusterDir, temp_dir: Path) -> dict[str, str]:
    autoscaler_metrics, dashboard_metrics = _free_ports(2)
    return {
        **_DEFAULTS,
        **_inherit(os.environ),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(directory.token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A driver that is told to stop gets this long; after Ray's 3 s it would leave its sandboxes behind.
        "RAY_JOB_STOP_WAIT_TIME_S": str(RAY_STOP_WAIT_S),
        # Without it Ray replaces 127.0.0.1 by the machine's own address on Linux, and listens there.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Their defaults are fixed ports, which two clusters on one machine cannot share.
        "AUTOSCALER_METRIC_PORT": str(autoscaler_metrics),
        "DASHBOARD_METRIC_PORT": str(dashboard_metrics),
        # Keeps the address file that plain ray.init() reads out of /tmp/ray.
        "RAY_TMPDIR": str(temp_dir),
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
    }


def _inherit(environ: Mapping[str, str]) -> dict[str, str]:
    """What the cluster takes over from the shell that starts it: of Ray's variables its system configuration.

    Its others say where a cluster is and who one is in it; the shell may itself be part of a job.
    """
    return {
        name: value
        for name, value in drop_internal_variables(environ).items()
        # Ray gives each worker as many threads as CPUs, unless it is set for all of them.
        if name != "OMP_NUM_THREADS" and (not name.startswith("RAY_") or _RAY_CONFIGURATION.match(name))
    }


def _free_ports(num_ports: int) -> list[int]:
    # All are held at once, so that they differ; Ray's worker ports (10002-19999) lie below the ephemeral range.
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(num_ports)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _wait_until_ready(jobs: RayJobs, ending: threading.Event) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_S
    faults = Faults("waiting for the cluster")
    while not ending.wait(0.1) and time.monotonic() < deadline:
        try:
            jobs.has_running_jobs()
        except ClusterError:
            continue
        except Exception as err:  # Perhaps an answer from before it was ready.
            faults.take(err)
            continue
        return True
    return False


def _wait_until_idle(jobs: RayJobs, directory: LocalClusterDir, ending: threading.Event) -> None:
    idle_limit_s = float(os.environ.get(IDLE_VARIABLE) or DEFAULT_IDLE_S)
    faults = Faults("looking for an idle cluster")
    while not ending.wait(min(IDLE_POLL_S, idle_limit_s)):
        try:
            if _is_over(jobs, directory, idle_limit_s):
                return
        except ClusterError:
            continue
        except Exception as err:  # A cluster with running jobs must not end for it.
            faults.take(err)


def _is_over(jobs: RayJobs, directory: LocalClusterDir, idle_limit_s: float) -> bool:
    if not _is_current(directory):
        # Somebody has started another cluster in this directory; nobody finds this one any more.
        return not jobs.has_running_jobs()
    if jobs.has_running_jobs():
        directory.touch()
    if directory.idle_s() < idle_limit_s:
        return False
    with directory.lock("ends the idle cluster"):
        # A submitter may have come in meanwhile.
        if directory.idle_s() < idle_limit_s:
            return False
        directory.forget()
        return True


def _is_current(directory: LocalClusterDir) -> bool:
    try:
        cluster = directory.read()
    except NewerFormatError:  # A later version's.
        return False
    return cluster is not None and cluster.supervisor_pid == os.getpid()


if __name__ == "__main__":
    main()
