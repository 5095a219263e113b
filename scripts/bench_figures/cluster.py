"""A cluster on AWS in a box: how long it takes until it is up, until a job's first step, and from a notice to a save.

What cannot be saved is the baseline: Ray's own launcher for the same head, a bare Ray task that a worker has to be
launched for, and for a notice the time in which the watcher looks once. Needs root, as the box does.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

from support.cloud.box import Box, find_missing_for_box, open_box
from support.cloud.user import make_bucket
from support.hash_chain import HashChain

from bench_figures.programs import note
from bench_figures.row import FigureError, Goal, Row

NUM_NOTICES = int(os.environ.get("PERIFLOW_BENCH_NUM_NOTICES", "20"))
_ROOT = "s3://periflow/root"
_VM = "aws-24gb-a10g-1g-us-west-2"
_UP = (
    *("periflow-ray", "cluster", "up", "--name", "mine", "--vm", f"{_VM}-spot", "--vm", _VM, "--yes"),
    *("--ssh-from", "10.77.0.0/24", "--storage", _ROOT),
)
_COMMAND_TIMEOUT_S = 600.0
_NOTICE_S = 30.0
# AWS's metadata service is asked every two seconds.
_LOOK_S = 2.0
_STEPS_BEFORE_NOTICE_S = 3.0
_POLL_S = 0.5
_UP_GOAL, _FIRST_STEP_GOAL = Goal("<=", 1.1), Goal("<=", 1.3)
_NOTICE_GOAL, _ALL_GOAL = Goal("<=", 4, "s"), Goal(">=", 1)
_TASK = """
import sys, ray
ray.init(address="auto", log_to_driver=False)
print(ray.get(ray.remote(num_gpus=1, label_selector={"periflow-ray/vm": sys.argv[1]})(lambda: "ran").remote()))
"""
# Each attempt of a job: when its first step was made, and what its loss cost.
_READ_ATTEMPTS = """
import json, sys
from periflow_ray.jobs import read_state
from periflow_ray.jobs.account import build_account
from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.store.checkpoints import list_committed
from periflow_ray.store.root import StorageRoot
import time
root, job_id = StorageRoot(sys.argv[1]), int(sys.argv[2])
attempts = read_attempts(root, job_id)
account = build_account(attempts, read_state(root, job_id), now_unix_s=time.time())
lost = {entry.number: entry.num_lost_steps for entry in account.attempts}
print(json.dumps({
    "attempts": [[a.number, a.first_step_unix_s, a.resumable_step, lost.get(a.number)] for a in attempts],
    "commits": {m.step: m.created_unix_s for m in list_committed(root, job_id)},
}))
"""


@dataclass(frozen=True)
class _Loss:
    save_s: float
    num_lost_steps: int


def measure_cluster() -> list[Row]:
    """Four rows; the last two are of ``NUM_NOTICES`` notices to one job."""
    missing = find_missing_for_box()
    if missing is not None:
        raise FigureError(missing)
    with open_box("aws", "us-west-2") as box:
        box.check_out()
        make_bucket(box)
        ray_up_s = _time_ray_up(box)
        up_s = _time(box, *_UP)
        box.write("task.py", _TASK)
        task_s = _time_task(box)
        submitted_unix_s = time.time()
        # Slow after each start, so that it does not end before the last notice.
        _submit(box, HashChain(num_steps=10**6, step_time_s=0.1, save_every=10**7, num_slow_starts=10**6))
        first_step_s = _wait_for_attempt(box, 1) - submitted_unix_s
        losses = [_give_notice(box, number) for number in range(1, NUM_NOTICES + 1)]
        _run(box, "periflow-ray", "cluster", "down", "mine", "--yes", "--storage", _ROOT)
    slowest_s = max(loss.save_s for loss in losses)
    num_kept = sum(loss.num_lost_steps == 0 for loss in losses)
    note(f"notice_on_cloud: {median(loss.save_s for loss in losses):.2f} s in the median, {slowest_s:.2f} s at most")
    return [
        Row("cluster_up", up_s, ray_up_s, "s", up_s / ray_up_s, _UP_GOAL),
        Row("cluster_first_step", first_step_s, task_s, "s", first_step_s / task_s, _FIRST_STEP_GOAL),
        Row("notice_on_cloud", slowest_s, _LOOK_S, "s", slowest_s / _LOOK_S, _NOTICE_GOAL),
        Row("notice_on_cloud_kept", num_kept, NUM_NOTICES, "runs", num_kept / NUM_NOTICES, _ALL_GOAL),
    ]


def _time_ray_up(box: Box) -> float:
    """Ray's own launcher with the same file, in an account that has nothing of the cluster either."""
    box.write(".ray/auth_token", "of-plain-ray-up")
    render = ("periflow-ray", "cluster", "render", "--name", "plain", "--vm", f"{_VM}-spot", "--vm", _VM)
    box.write("plain.yaml", _run(box, *render))
    ray_up_s = _time(box, "ray", "up", "--yes", "--no-config-cache", "../plain.yaml")
    (head,) = [machine for machine in box.ask("machines") if machine["state"] == "running"]
    box.ask("lose", instance=head["instance"])
    return ray_up_s


def _time_task(box: Box) -> float:
    copy = f"periflow-ray cluster ssh mine --storage {_ROOT} -- tee task.py <~/task.py"
    _run(box, "bash", "-c", copy)
    return _time(box, "periflow-ray", "cluster", "ssh", "mine", "--storage", _ROOT, "--", "python", "task.py", _VM)


def _submit(box: Box, chain: HashChain) -> None:
    template = chain.template(f"{_VM}-spot").replace("num_devices: 2", "num_devices: 1")
    box.write("chain/app/main.py", chain.script())
    box.write("chain/pf-template.yml", template.replace("max_failures: 3", "max_failures: 1000"))
    _run(
        box,
        *("periflow-ray", "submit", "-f", "../chain/pf-template.yml", "-d", "../chain/app", "--no-follow"),
        *("--storage", _ROOT),
    )


def _wait_for_attempt(box: Box, number: int) -> float:
    """When an attempt made its first step, as soon as it has; Unix seconds."""
    deadline = time.monotonic() + _COMMAND_TIMEOUT_S
    while time.monotonic() < deadline:
        for found, first_step_unix_s, *_ in _read_job(box)["attempts"]:
            if found == number and first_step_unix_s is not None:
                return float(first_step_unix_s)
        time.sleep(_POLL_S)
    raise FigureError(f"attempt {number} made no step")


def _give_notice(box: Box, number: int) -> _Loss:
    """Announce the loss of the machine of an attempt that runs, and wait for the next attempt's first step."""
    _wait_for_attempt(box, number)
    time.sleep(_STEPS_BEFORE_NOTICE_S)
    (machine,) = [
        each
        for each in box.ask("machines")
        if each["state"] == "running" and each["tags"]["ray-user-node-type"] == f"{_VM}-spot"
    ]
    noticed_unix_s = time.time()
    box.ask("notice", instance=machine["instance"], notice_s=_NOTICE_S)
    _wait_for_attempt(box, number + 1)
    job = _read_job(box)
    _, _, resumable_step, num_lost_steps = job["attempts"][number - 1]
    return _Loss(job["commits"][str(resumable_step)] - noticed_unix_s, num_lost_steps)


def _read_job(box: Box) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_run(box, "python", "-c", _READ_ATTEMPTS, _ROOT, "1"))
    return found


def _time(box: Box, *argv: str) -> float:
    began_s = time.monotonic()
    _run(box, *argv)
    return time.monotonic() - began_s


def _run(box: Box, *argv: str) -> str:
    done = box.run(*argv, timeout_s=_COMMAND_TIMEOUT_S)
    if done.returncode != 0:
        raise FigureError(f"{' '.join(argv[:4])} failed: {done.stdout[-500:]}{done.stderr[-2000:]}")
    return done.stdout
