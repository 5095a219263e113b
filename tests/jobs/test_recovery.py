"""Jobs that lose a rank, an agent, the driver or a machine, or are stopped, end exactly as an undisturbed one does."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from workbench import Workbench, find_agent, find_driver, processes_with, wait_until

from periflow_ray.runtime.sandbox import Sandbox
from periflow_ray.store import checkpoints, jobs
from periflow_ray.store.attempts import AttemptRecord, read_attempts
from periflow_ray.store.requests import post_request

pytestmark = pytest.mark.ray

WriteJob = Callable[..., tuple[Path, Path]]
NUM_STEPS = 400
# Every step's state follows from the one before: a step that is lost, or made twice, changes the last one.
SCRIPT = f"""
import hashlib, json, os, time
from pathlib import Path
import periflow_ray as pf
directory = Path(os.environ["CKPT_DIR"])
rank = os.environ["RANK"]
path = directory / f"state-{{rank}}.json"
step, state = json.loads(path.read_text()) if path.exists() else (0, rank)
pf.init(total_train_steps={NUM_STEPS})
while step < {NUM_STEPS}:
    with pf.train_step():
        state = hashlib.sha256(f"{{state}} {{step}}".encode()).hexdigest()
        time.sleep(0.02)
    step += 1
    if step % 50 == 0 or pf.is_emergency_save():
        path.write_text(json.dumps([step, state]))
        pf.upload_checkpoint()
"""
TWO_NODES = "max_failures: 3\n"


def expected_state(rank: int) -> str:
    state = str(rank)
    for step in range(NUM_STEPS):
        state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
    return state


@pytest.fixture
def start_job(workbench: Workbench, write_job: WriteJob) -> Callable[[], int]:
    """Starts a job on two stand-in nodes and waits for its first checkpoint."""

    def start() -> int:
        template, workspace = write_job(SCRIPT, extra=TWO_NODES)
        text = template.read_text().replace("num_devices: 1", "num_devices: 2")
        template.write_text(text.replace("type: custom", "type: custom\n  launch_mode: device"))
        job_id = workbench.start(template, workspace)
        wait_until(lambda: checkpoints.latest_committed(workbench.root, job_id) is not None, "a checkpoint", 90)
        return job_id

    return start


def finish(workbench: Workbench, job_id: int, status: str = "success") -> list[AttemptRecord]:
    wait_until(lambda: jobs.read_state(workbench.root, job_id).has_ended, "the job ends", 120)
    state = jobs.read_state(workbench.root, job_id)
    assert state.status == status, state
    return read_attempts(workbench.root, job_id)


def final_states(workbench: Workbench, job_id: int, tmp_path: Path) -> list[str]:
    manifest = checkpoints.latest_committed(workbench.root, job_id)
    assert manifest is not None
    assert manifest.step == NUM_STEPS
    checkpoints.restore(workbench.root, manifest, 0, tmp_path / "final")
    return [json.loads((tmp_path / "final" / f"state-{rank}.json").read_text())[1] for rank in range(2)]


def find_rank(workbench: Workbench, job_id: int) -> int:
    sandbox = str(Sandbox(workbench.root.uri, job_id, 1).directory)
    return next(
        pid for pid in processes_with(sandbox) if Path(f"/proc/{pid}/cmdline").read_text() == "python\0main.py\0"
    )


@pytest.mark.parametrize("victim", ["rank", "agent", "driver"])
def test_a_killed_process_costs_only_the_steps_after_the_last_checkpoint(
    workbench: Workbench, start_job: Callable[[], int], tmp_path: Path, victim: str
) -> None:
    job_id = start_job()
    if victim == "rank":
        os.kill(find_rank(workbench, job_id), signal.SIGKILL)
    elif victim == "agent":
        os.kill(find_agent(str(Sandbox(workbench.root.uri, job_id, 1).directory)), signal.SIGKILL)
    else:
        os.kill(find_driver(job_id), signal.SIGKILL)
    first, second = finish(workbench, job_id)
    assert (first.cause, second.cause) == ({"rank": "failure", "agent": "lost", "driver": "driver"}[victim], None)
    assert second.resumed_step == first.resumable_step >= 50
    assert final_states(workbench, job_id, tmp_path) == [expected_state(0), expected_state(1)]


def test_a_notice_costs_no_step(workbench: Workbench, start_job: Callable[[], int], tmp_path: Path) -> None:
    job_id = start_job()
    post_request(workbench.root, job_id, "drill", what="notice", notice_s=30, node=1)
    first, second = finish(workbench, job_id)
    assert (first.cause, second.cause) == ("preemption", None)
    assert first.save is not None
    # Saved where both ranks stopped: nothing is made twice.
    assert first.last_step == first.save.step == first.resumable_step == second.resumed_step
    assert final_states(workbench, job_id, tmp_path) == [expected_state(0), expected_state(1)]


def test_a_stopped_job_is_saved_where_it_stood_and_goes_on_from_there(
    workbench: Workbench, start_job: Callable[[], int], tmp_path: Path
) -> None:
    job_id = start_job()
    assert workbench.run("job", "stop", job_id).exit_code == 0
    (stopped,) = finish(workbench, job_id, "stopped")
    assert stopped.cause == "stop"
    assert stopped.last_step == stopped.resumable_step > 50
    resumed = workbench.run("job", "resume", job_id, "--local", "--no-follow")
    assert resumed.exit_code == 0, resumed
    wait_until(lambda: not jobs.read_state(workbench.root, job_id).has_ended, "the job goes on", 30)
    assert finish(workbench, job_id)[-1].resumed_step == stopped.resumable_step
    assert final_states(workbench, job_id, tmp_path) == [expected_state(0), expected_state(1)]


def test_a_failure_that_comes_back_at_the_same_step_ends_the_job(workbench: Workbench, write_job: WriteJob) -> None:
    script = """
import periflow_sdk as pf
pf.init(10)
for _ in range(3):
    with pf.train_step():
        pass
raise SystemExit("always here")
"""
    outcome, job = workbench.submit(*write_job(script, extra="max_failures: 100\n"))
    assert (outcome.exit_code, job.state.status) == (1, "failed")
    assert "it failed 3 times in a row at step 3 without progress" in (job.state.message or "")
    assert [record.cause for record in read_attempts(workbench.root, job.record.job_id)] == ["failure"] * 3
