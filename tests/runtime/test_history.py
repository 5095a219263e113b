from __future__ import annotations

import asyncio
import dataclasses
import threading
import time

from simulated_cluster import HOLD_TIMEOUT_S
from simulated_nodes import facts_of, failure_of, take_steps

from periflow_ray.jobs import JobProgress, write_progress
from periflow_ray.jobs.attempts import SaveRecord, close_attempt, read_attempts, write_attempt
from periflow_ray.jobs.resumes import claim_resume
from periflow_ray.runtime.monitor.attempt import Attempt
from periflow_ray.runtime.monitor.history import History
from periflow_ray.store.checkpoints import Manifest
from periflow_ray.store.root import StorageRoot


def make_attempt(number: int) -> Attempt:
    attempt = Attempt(number, (f"group-{number}", 0), 2, devices_per_member=2)
    for rank in range(2):
        attempt.add(facts_of(rank, 2))
    return attempt


def open_history(root: StorageRoot, max_failures: int = -1) -> History:
    return History(root, 1, max_failures=max_failures)


async def fail(history: History, number: int, step: int = 7) -> None:
    attempt = make_attempt(number)
    await history.begin(attempt)
    take_steps(attempt, 0, {0: step})
    attempt.end("failure", "rank 0 failed")
    await history.end(attempt, 0, None)


def test_an_attempt_is_recorded_as_it_begins_goes_on_and_ends(root):
    history = open_history(root)
    attempt = make_attempt(1)

    async def scenario() -> None:
        await history.begin(attempt)
        (begun,) = read_attempts(root, 1)
        assert (begun.num_nodes, begun.num_devices, begun.ended_unix_s, begun.cause) == (2, 4, None, None)
        # Nothing to say before the first step, and then only every few seconds.
        take_steps(attempt, 0, {0: 0})
        await history.update(attempt)
        assert read_attempts(root, 1) == [begun]
        take_steps(attempt, 0, {0: 3})
        await history.update(attempt)
        take_steps(attempt, 0, {0: 5})
        await history.update(attempt)
        assert [record.last_step for record in read_attempts(root, 1)] == [3]
        attempt.end("preemption", "node 1 was taken away")
        save = SaveRecord(30.0, 5, 1.5)
        await history.end(attempt, 5, save)
        # Only the first end counts.
        await history.end(attempt, 99, None)
        await history.update(attempt)
        (ended,) = read_attempts(root, 1)
        assert ended.ended_unix_s is not None
        assert ended == dataclasses.replace(
            begun,
            first_step_unix_s=attempt.first_step_unix_s,
            last_step_unix_s=attempt.last_step_unix_s,
            ended_unix_s=ended.ended_unix_s,
            last_step=5,
            resumable_step=5,
            cause="preemption",
            text="node 1 was taken away",
            save=save,
        )
        assert (history.find_ended(1), history.find_ended(2)) == (ended, None)

    asyncio.run(scenario())


def test_the_first_rank_that_failed_is_named_not_the_first_that_said_so(root):
    async def scenario() -> None:
        history, attempt = open_history(root), make_attempt(1)
        await history.begin(attempt)
        attempt.end("failure", failure_of(0, time_unix_s=20.0).headline())
        attempt.failures = {0: failure_of(0, time_unix_s=20.0), 1: failure_of(1, time_unix_s=10.0)}
        await history.end(attempt, 0, None)

    asyncio.run(scenario())
    (record,) = read_attempts(root, 1)
    assert record.text == failure_of(1).headline()


def test_an_attempt_that_nobody_ended_was_cut_short_by_the_drivers_death(root):
    async def scenario() -> None:
        first = open_history(root)
        attempt = make_attempt(1)
        await first.begin(attempt)
        take_steps(attempt, 0, {0: 3})
        await first.update(attempt)
        write_progress(root, 1, JobProgress(step=8))
        # Another driver.
        second = open_history(root)
        assert second.last_number == 1
        await second.begin(make_attempt(2))

    asyncio.run(scenario())
    first, second = read_attempts(root, 1)
    assert (first.cause, first.text, first.last_step) == ("driver", "the job's driver died", 8)
    assert (second.number, second.ended_unix_s) == (2, None)


def test_what_a_driver_saves_after_its_end_was_recorded_counts_for_its_attempt(root):
    async def scenario() -> None:
        attempt = make_attempt(1)
        history = open_history(root)
        await history.begin(attempt)
        take_steps(attempt, 0, {0: 8})
        await history.update(attempt)
        (record,) = read_attempts(root, 1)
        write_attempt(root, 1, close_attempt(record, ended_unix_s=time.time(), last_step=8, resumable_step=5))
        resumed = make_attempt(2)
        resumed.resume_at(Manifest("step-00000012", 1, 12, 1, 2, 2, created_unix_s=0.0, files=()))
        await open_history(root).begin(resumed)

    asyncio.run(scenario())
    first, second = read_attempts(root, 1)
    assert (first.cause, first.last_step, first.resumable_step) == ("driver", 12, 12)
    assert second.resumed_step == 12


def test_failures_of_earlier_drivers_count(root):
    async def scenario() -> None:
        await fail(open_history(root), 1, step=5)
        await fail(open_history(root), 2, step=6)
        assert open_history(root, max_failures=1).refuse_restart() == "it failed 2 time(s); max_failures allows 1"
        await fail(open_history(root), 3, step=6)
        await fail(open_history(root), 4, step=6)
        assert open_history(root).refuse_restart() == "it failed 3 times in a row at step 6 without progress"

    asyncio.run(scenario())


def test_whoever_resumes_a_job_gives_it_all_its_restarts_again(root):
    async def scenario() -> None:
        for number in (1, 2):
            await fail(open_history(root), number)
        assert claim_resume(root, 1, "submission-1", attempt=2)
        history = open_history(root, max_failures=0)
        assert history.refuse_restart() is None
        await fail(history, 3)
        assert history.refuse_restart() == "it failed 1 time(s); max_failures allows 0"

    asyncio.run(scenario())


def test_an_update_that_is_slow_does_not_overtake_the_end(slow_root):
    async def scenario() -> None:
        history, attempt = open_history(slow_root), make_attempt(1)
        await history.begin(attempt)
        take_steps(attempt, 0, {0: 3})
        slow_root.hold("1.json")
        updating = asyncio.create_task(history.update(attempt))
        await asyncio.to_thread(slow_root.is_held.wait, HOLD_TIMEOUT_S)
        attempt.end("preemption", "node 1 was taken away")
        ending = asyncio.create_task(history.end(attempt, 3, None))
        # The end would be written by now if it did not wait.
        probe = threading.Event()
        await asyncio.to_thread(probe.set)
        slow_root.let_go()
        await asyncio.gather(updating, ending)

    asyncio.run(scenario())
    (record,) = read_attempts(slow_root, 1)
    assert record.cause == "preemption"


def test_records_that_the_storage_does_not_take_are_written_later_and_end_no_job(root):
    async def scenario() -> None:
        history = open_history(root)
        blocker = root.local_path("jobs/1/attempts")
        blocker.parent.mkdir(parents=True)
        blocker.write_text("no directory")
        await fail(history, 1)
        attempt = make_attempt(2)
        await history.begin(attempt)
        assert history.refuse_restart() is None
        blocker.unlink()
        await history.update(attempt)
        assert [(record.number, record.cause) for record in read_attempts(root, 1)] == [(1, "failure"), (2, None)]

    asyncio.run(scenario())


def test_the_end_of_an_attempt_whose_beginning_failed_takes_no_other_ones_place(root):
    async def scenario() -> None:
        history = open_history(root)
        await fail(history, 1)
        attempt = make_attempt(2)
        attempt.end("lost", "node 1 was lost")
        await history.end(attempt, 0, None)
        assert [(record.number, record.cause) for record in read_attempts(root, 1)] == [(1, "failure"), (2, "lost")]

    asyncio.run(scenario())


def damage(root: StorageRoot, key: str) -> None:
    root.write_bytes(key, root.read_bytes(key)[:20])


def test_a_damaged_record_is_told_once_and_left_out_and_its_number_is_not_given_again(root):
    notes: list[str] = []

    async def scenario() -> None:
        for number in (1, 2, 3):
            await fail(open_history(root), number, step=number)
        for number in (1, 3):
            damage(root, f"jobs/1/attempts/{number}.json")
        left = root.read_bytes("jobs/1/attempts/3.json")
        history = History(root, 1, -1, notes.append)
        assert history.last_number == 3
        assert history.refuse_restart() is None
        await fail(history, 4)
        assert history.last_number == 4
        assert root.read_bytes("jobs/1/attempts/3.json") == left

    asyncio.run(scenario())
    assert [note.partition(" is damaged: ")[0] for note in notes] == [
        f"left out of the job's history: 'jobs/1/attempts/{number}.json' in storage root '{root.uri}'"
        for number in (1, 3)
    ]
    assert [record.number for record in read_attempts(root, 1, on_unreadable=lambda err: None)] == [2, 4]


def test_an_attempt_whose_record_is_damaged_counts_as_a_failure_when_the_job_fails_again(root):
    unknown = "it failed 1 time(s), and how 1 other attempt(s) ended cannot be read; max_failures allows 1"

    async def scenario() -> None:
        await fail(open_history(root), 1)
        damage(root, "jobs/1/attempts/1.json")
        history = open_history(root, max_failures=1)
        await fail(history, 2)
        assert history.refuse_restart() == unknown
        assert open_history(root, max_failures=2).refuse_restart() is None
        # A user who takes the job up gives it all its restarts again.
        assert claim_resume(root, 1, "submission-1", attempt=2)
        resumed = open_history(root, max_failures=1)
        await fail(resumed, 3)
        assert resumed.refuse_restart() is None

    asyncio.run(scenario())


def test_damaged_claims_and_a_damaged_progress_keep_no_driver_from_its_next_attempt(root):
    notes: list[str] = []

    async def scenario() -> None:
        attempt = make_attempt(1)
        first = open_history(root)
        await first.begin(attempt)
        take_steps(attempt, 0, {0: 3})
        await first.update(attempt)
        assert claim_resume(root, 1, "submission-1", attempt=0)
        for key in ("jobs/1/resumes/submission-1-0.json", "jobs/1/progress.json"):
            root.write_bytes(key, b'{"format": 1, "att')
        await History(root, 1, -1, notes.append).begin(make_attempt(2))

    asyncio.run(scenario())
    first, second = read_attempts(root, 1)
    # Steps that only the progress knew of are not known any more.
    assert (first.cause, first.last_step, second.ended_unix_s) == ("driver", 3, None)
    assert len(notes) == 1
    assert "'jobs/1/resumes/submission-1-0.json'" in notes[0]
