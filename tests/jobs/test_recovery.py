"""Jobs that lose a rank, an agent, the driver or a machine, or are stopped, end exactly as an undisturbed one does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_chain_job import HashChainJob, WriteJob
from support.hash_chain import HashChain
from support.workbench import Workbench, find_agent, find_driver

from periflow_ray.jobs.attempts import read_attempts

pytestmark = pytest.mark.ray


@pytest.fixture
def start_job(workbench: Workbench, write_job: WriteJob) -> Callable[[], HashChainJob]:
    """Starts a job on two stand-in nodes and waits for its first checkpoint."""

    def start() -> HashChainJob:
        job = HashChainJob(workbench, write_job, HashChain(num_steps=400, step_time_s=0.02))
        job.wait_for_checkpoint()
        return job

    return start


@pytest.mark.long
@pytest.mark.parametrize("victim", ["rank", "agent", "driver"])
def test_a_killed_process_costs_only_the_steps_after_the_last_checkpoint(
    start_job: Callable[[], HashChainJob], tmp_path: Path, victim: str
) -> None:
    job = start_job()
    find = {
        "rank": lambda: job.find_rank(1),
        "agent": lambda: find_agent(job.sandbox(1)),
        "driver": lambda: find_driver(job.workbench.root.uri, job.job_id),
    }
    pid = find[victim]()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    first, second = job.finish()
    assert (first.cause, second.cause) == ({"rank": "failure", "agent": "lost", "driver": "driver"}[victim], None)
    assert second.resumed_step == first.resumable_step >= 50
    assert job.read_states(tmp_path / "final") == job.expected_states


@pytest.mark.long
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


@pytest.mark.long
def test_a_job_that_stands_still_too_often_has_failed(workbench: Workbench, write_job: WriteJob) -> None:
    script = """
import time
import periflow_sdk as pf
pf.init(10)
for step in range(4):
    with pf.train_step():
        time.sleep(3600 if step == 3 else 0.1)
"""
    outcome, job = workbench.submit(*write_job(script, extra="hang_timeout: 2s\n"))
    assert (outcome.exit_code, job.state.status) == (1, "failed")
    assert "no rank made a step for" in (job.state.message or "")
    assert "max_failures allows 0" in (job.state.message or "")
    assert [record.cause for record in read_attempts(workbench.root, job.record.job_id)] == ["hang"]
