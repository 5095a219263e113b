"""Losses of every kind, and stops at every moment: no job ends with another state than undisturbed, and none waits.

Long because the losses are compared with one undisturbed run.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.command_chain_job import HashChainJob, WriteJob
from support.hash_chain import HashChain
from support.workbench import Outcome, Workbench, find_agent, find_driver, processes_with, wait_until

from periflow_ray import jobs
from periflow_ray.jobs.events import read_events
from periflow_ray.jobs.logs import read_logs
from periflow_ray.store import checkpoints
from periflow_ray.submit.local_cluster import LocalClusterDir

pytestmark = pytest.mark.ray

StartJob = Callable[..., HashChainJob]
# A minute at 20 ms a step: the job does not end before it is told to hurry.
CHAIN = HashChain(num_steps=3000, step_time_s=0.02, save_every=25)
TWO_MIB = 2 << 20


@pytest.fixture
def start_job(workbench: Workbench, write_job: WriteJob) -> StartJob:
    """Starts a job that lasts until it is told to hurry, and waits for its first checkpoint."""

    def start(bench: Workbench = workbench, extra: str = "max_failures: 3", **options: Any) -> HashChainJob:
        job = HashChainJob(bench, write_job, replace(CHAIN, **options), extra)
        job.wait_for_checkpoint()
        return job

    return start


def events_of(job: HashChainJob) -> str:
    return "\n".join(event.text for event in read_events(job.workbench.root, job.job_id))


def start_command(job: HashChainJob, *arguments: object) -> subprocess.Popen[str]:
    """A command that runs beside the test."""
    return subprocess.Popen(
        [sys.executable, "-m", "periflow_ray.cli.main", *map(str, arguments)],
        env=job.workbench.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_status(job: HashChainJob, status: str) -> None:
    wait_until(lambda: jobs.read_state(job.workbench.root, job.job_id).status == status, f"the job is {status}")


def test_drills_and_a_rank_that_stands_still_tell_what_each_loss_costs(start_job: StartJob, tmp_path: Path) -> None:
    job = start_job(extra="max_failures: 3\nhang_timeout: 8s")
    number = r"[\d.]+"
    resumed = rf"resumed at step \d+ after {number} s"
    told = {
        ("--notice", "30s"): rf"drill: node 1 was taken away, 30 s notice; saved at step \d+, {number} s after the "
        rf"notice; {resumed}; lost 0 steps, 0 device-seconds",
        ("--kill-rank", "1"): rf"node 1, rank 1 was killed by SIGKILL at step \d+; {resumed}; lost \d+ steps?, "
        rf"{number} device-seconds",
        ("--kill-node", "0"): rf"node 0 was lost: its agent or its machine died at step \d+; {resumed}; "
        rf"lost \d+ steps?, {number} device-seconds",
    }
    for attempt, (options, account) in enumerate(told.items(), start=1):
        drill = job.workbench.run("job", "drill", job.job_id, *options)
        assert drill.exit_code == 0, drill
        assert re.fullmatch(rf"Attempt {attempt}: {account}\n", drill.stdout), drill.stdout
    rank = job.find_rank(1)
    assert rank is not None
    os.kill(rank, signal.SIGSTOP)
    wait_until(lambda: len(job.attempts()) == 5, "the fifth attempt begins")
    job.hurry()
    *_, hung, last = attempts = job.finish()
    assert [attempt.cause for attempt in attempts] == ["preemption", "failure", "lost", "hang", None]
    assert re.fullmatch(r"no rank made a step for (8|9|1\d) s after step \d+", hung.text)
    assert last.resumed_step == hung.resumable_step
    log = [line.text for line in read_logs(job.workbench.root, job.job_id) if line.node_rank is not None]
    # The stopped one in its step or between two, the other one in a checkpoint that cannot be completed.
    assert any(re.match(r"\[rank 1\] .*main\.py", line) for line in log)
    assert any(re.match(r"\[rank 0\] .*upload_checkpoint", line) for line in log)
    assert job.read_states(tmp_path / "final") == job.expected_states


@pytest.mark.long
def test_a_node_that_cannot_copy_a_checkpoint_aside_says_so_and_goes_on_from_the_one_before(
    start_job: StartJob, tmp_path: Path
) -> None:
    job = start_job(weights_bytes=TWO_MIB, extra="max_failures: 1000")
    agent = find_agent(job.sandbox(1))
    assert agent is not None
    # As with a full disk, small files still fit.
    resource.prlimit(agent, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    wait_until(lambda: "File too large" in events_of(job), "the first save fails")
    resource.prlimit(agent, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    job.wait_for_checkpoint(job.checkpoint_step() + 25)
    job.hurry()
    *failed, last = job.finish()
    assert {attempt.cause for attempt in failed} == {"failure"}
    assert last.cause is None
    assert "was not saved: node 1: [Errno 27] File too large" in events_of(job)
    assert job.read_states(tmp_path / "final") == job.expected_states


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    directory = tmp_path / "small-disk"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(directory)], check=False)
    if mounted.returncode != 0:
        pytest.skip("this user may not mount a file system")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(path: Path) -> None:
    """Take all that is free."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            # The last write takes what is left, and the one after it fails.
            file.write(bytes(4096))


def test_a_rank_that_dies_while_the_storage_root_is_full_starts_again_and_everything_is_told_later(
    workbench: Workbench, start_job: StartJob, small_disk: Path, tmp_path: Path
) -> None:
    bench = workbench.on(str(small_disk / "storage"))
    job = start_job(bench, weights_bytes=TWO_MIB, extra="  keep_last: 1\nmax_failures: 3")
    rank = job.find_rank(1)
    assert rank is not None
    fill(small_disk / "filler")
    os.kill(rank, signal.SIGKILL)
    wait_until(lambda: job.find_rank(1) not in (None, rank), "the rank starts again")
    saved_step = job.checkpoint_step()
    wait_until(lambda: job.written_step(1) >= saved_step + 75, "some checkpoints find no space")
    (small_disk / "filler").unlink()
    wait_until(lambda: len(job.attempts()) == 2, "the second attempt is recorded")
    job.wait_for_checkpoint(job.checkpoint_step() + 25)
    job.hurry()
    first, second = job.finish()
    assert (first.cause, second.cause) == ("failure", None)
    assert second.resumed_step == first.resumable_step >= 25
    assert re.search(r"checkpoint at step \d+ was not saved: .*No space left on device", events_of(job))
    assert job.read_states(tmp_path / "final") == job.expected_states


def find_actor(job: HashChainJob, name: str) -> int | None:
    """A process of the job's own that Ray names after its class: the monitor, or Ray Train's controller."""
    driver = find_driver(job.workbench.root.uri, job.job_id)
    for pid in processes_with(str(job.workbench.ray_dir)) if driver is not None else []:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(f"ray::{name}".encode()):
                return pid
    return None


def test_a_job_whose_own_processes_die_goes_on_from_its_checkpoint(start_job: StartJob, tmp_path: Path) -> None:
    job = start_job(extra="max_failures: 0")
    for num_attempts, name in enumerate(["Monitor", "TrainController"], start=2):
        victim = find_actor(job, name)
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda count=num_attempts: len(job.attempts()) == count, "the next attempt begins")
        job.wait_for_checkpoint(job.checkpoint_step() + 25)
    job.hurry()
    *killed, last = job.finish()
    # Neither the script nor a machine is at fault: it costs none of the job's failures.
    assert [attempt.cause for attempt in (*killed, last)] == ["driver", "driver", None]
    assert [attempt.resumed_step for attempt in (*killed[1:], last)] == [attempt.resumable_step for attempt in killed]
    assert min(attempt.resumable_step for attempt in killed) >= 25
    assert events_of(job).count("of the job died; it is started again") == 2
    assert job.read_states(tmp_path / "final") == job.expected_states


def test_a_job_can_be_stopped_and_resumed_again_and_again_while_its_checkpoints_rotate(
    start_job: StartJob, tmp_path: Path
) -> None:
    job = start_job(extra="  keep_last: 1\nmax_failures: 0")

    def end_driver() -> None:
        driver = find_driver(job.workbench.root.uri, job.job_id)
        assert driver is not None
        os.kill(driver, signal.SIGTERM)

    def stop() -> None:
        stop = job.workbench.run("job", "stop", job.job_id)
        assert stop.exit_code == 0, stop

    for number, ask in enumerate([end_driver, stop]):
        ask()
        stopped = job.finish("stopped")[number]
        assert stopped.cause == "stop"
        assert stopped.last_step == stopped.resumable_step == job.checkpoint_step()
        job.resume()
        job.wait_for_checkpoint(stopped.resumable_step + 25)
        assert job.attempts()[-1].resumed_step == stopped.resumable_step

    # A stop whose save takes too long is ended by another one.
    job.slow_save_path.touch()
    first = start_command(job, "job", "stop", job.job_id)
    wait_for_status(job, "stopping")
    now = job.workbench.run("job", "stop", job.job_id, "--now")
    assert (first.wait(timeout=60), now.exit_code) == (0, 0), now
    stopped = job.finish("stopped")[-1]
    assert stopped.cause == "stop"
    assert f"its newest checkpoint is of step {stopped.resumable_step}" in now.stderr
    job.hurry()
    job.resume()
    last = job.finish()[-1]
    assert (last.cause, last.resumed_step) == (None, stopped.resumable_step)
    assert job.read_states(tmp_path / "final") == job.expected_states


def makes_steps(job: HashChainJob, after_attempt: int) -> bool:
    """Whether an attempt after this one has made a step."""
    newest = job.attempts()[-1]
    return newest.number > after_attempt and newest.ended_unix_s is None and newest.last_step > newest.resumed_step


def kill_found(find: Callable[[], int | None]) -> bool:
    """Whether there was a process to kill."""
    pid = find()
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


@pytest.mark.long
@pytest.mark.timeout(900)
def test_twenty_random_kills_in_one_run(start_job: StartJob, tmp_path: Path) -> None:
    job = start_job(extra="max_failures: 1000")
    chance = random.Random(20)
    order = ["rank"] * 11 + ["agent"] * 6 + ["driver"] * 3
    chance.shuffle(order)
    find = {
        "rank": lambda: job.find_rank(chance.randrange(2)),
        "agent": lambda: find_agent(job.sandbox(chance.randrange(2))),
        "driver": lambda: find_driver(job.workbench.root.uri, job.job_id),
    }
    killed_attempt, is_recovering = 0, False
    for victim in order:
        # Some kills hit a job that is just recovering, but never two in a row: it has to make steps.
        is_recovering = not is_recovering and chance.random() < 0.4
        if not is_recovering:
            wait_until(partial(makes_steps, job, killed_attempt), "steps are made")
        time.sleep(chance.uniform(0.0, 1.0))
        killed_attempt = job.attempts()[-1].number
        wait_until(partial(kill_found, find[victim]), f"there is a {victim} to kill")
        assert not jobs.read_state(job.workbench.root, job.job_id).has_ended
    # Before, the rank that was not killed might hear of the hurry and pass a step at which the other one saved.
    wait_until(partial(makes_steps, job, killed_attempt), "steps are made")
    job.hurry()
    attempts = job.finish()
    assert attempts[-1].cause is None
    assert job.read_states(tmp_path / "final") == job.expected_states


@pytest.mark.long
def test_a_second_stop_joins_the_first(start_job: StartJob, tmp_path: Path) -> None:
    job = start_job(emergency_save_time_s=8, save_every=50)
    first = start_command(job, "job", "stop", job.job_id)
    wait_for_status(job, "stopping")
    second = job.workbench.run("job", "stop", job.job_id)
    assert (first.wait(timeout=60), second.exit_code) == (0, 0), second
    (stopped,) = job.finish("stopped")
    assert stopped.cause == "stop"
    assert stopped.resumable_step == stopped.last_step
    assert f"saved at step {stopped.last_step}" in second.stderr
    job.resume()
    job.hurry()
    job.finish()
    assert job.read_states(tmp_path / "final") == job.expected_states


@pytest.mark.long
def test_a_job_that_never_asks_is_stopped_without_a_save_and_the_user_is_told(
    start_job: StartJob, tmp_path: Path
) -> None:
    job = start_job(asks=False, save_at=25)
    stop = job.workbench.run("job", "stop", job.job_id)
    (stopped,) = job.finish("stopped")
    assert stopped.save is not None
    assert (stopped.save.step, stopped.resumable_step) == (None, 25)
    assert stop.exit_code == 0, stop
    assert "nothing was saved in time, its newest checkpoint is of step 25" in stop.stderr
    assert "it never asked is_emergency_save()" in events_of(job)
    job.resume()
    job.hurry()
    assert job.finish()[-1].resumed_step == 25
    assert job.read_states(tmp_path / "final") == job.expected_states


def submit_elsewhere(workbench: Workbench, write_job: WriteJob, *options: str) -> tuple[Workbench, Outcome]:
    """Submit a job for a VM with a GPU to the embedded cluster, which has none, by its address."""
    workbench.start_cluster()
    cluster_dir = LocalClusterDir(workbench.cluster_dir)
    cluster = cluster_dir.read()
    assert cluster is not None
    guest = Workbench(workbench.root.uri, workbench.cluster_dir)
    guest.env["RAY_AUTH_TOKEN_PATH"] = str(cluster_dir.token_path)
    template, workspace = write_job("raise SystemExit('never started')")
    return guest, guest.run("submit", "--address", cluster.address, *options, "-f", template, "-d", workspace)


def test_a_job_whose_machines_do_not_come_in_time_fails_with_the_reason(
    workbench: Workbench, write_job: WriteJob
) -> None:
    _, submitted = submit_elsewhere(workbench, write_job, "--wait", "1s")
    job_id = max(job.record.job_id for job in jobs.list_jobs(workbench.root))
    assert submitted.exit_code == 1, submitted
    state = jobs.read_state(workbench.root, job_id)
    assert state.status == "failed"
    assert state.message is not None
    assert re.match(r"given up after 1 s \(--wait\): the job waits for 1 x \(.*1 GPU\); the cluster has", state.message)


def test_a_job_that_still_waits_for_its_machines_is_stopped_at_once(workbench: Workbench, write_job: WriteJob) -> None:
    guest, submitted = submit_elsewhere(workbench, write_job, "--no-follow")
    job_id = max(job.record.job_id for job in jobs.list_jobs(workbench.root))
    assert submitted.exit_code == 0, submitted
    wait_until(lambda: jobs.read_state(workbench.root, job_id).status == "allocating", "the job waits for machines")
    stop = guest.run("job", "stop", job_id)
    assert stop.exit_code == 0, stop
    assert "it has no checkpoint" in stop.stderr
    assert jobs.read_state(workbench.root, job_id).status == "stopped"
    assert checkpoints.latest_committed(workbench.root, job_id) is None
