from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from document_kinds import job_record

from periflow_ray.errors import DamagedDocumentError, DocumentError, NewerFormatError
from periflow_ray.jobs import JobProgress, JobState, read_progress, read_state, resumes, write_state
from periflow_ray.jobs.attempts import AttemptRecord, read_attempts, write_attempt
from periflow_ray.jobs.events import read_events
from periflow_ray.jobs.resumes import (
    CLAIM_LASTS_S,
    claim_resume,
    read_resumed_attempts,
    reopen_job,
    replace_unreadable_state,
    require_resumable,
)
from periflow_ray.store.keys import job_key


def test_of_twenty_who_resume_at_once_one_wins(local_root):
    barrier = threading.Barrier(20)

    def claim(_: int) -> bool:
        barrier.wait()
        return claim_resume(local_root, 1, "driver-a", 3)

    with ThreadPoolExecutor(20) as pool:
        assert sorted(pool.map(claim, range(20))) == [*[False] * 19, True]


def test_each_driver_that_ended_can_be_followed_by_another(root):
    assert read_resumed_attempts(root, 1) == frozenset()
    assert claim_resume(root, 1, "driver-a", 2)
    assert not claim_resume(root, 1, "driver-a", 2)
    assert claim_resume(root, 1, "driver-b", 4)
    assert claim_resume(root, 2, "driver-a", 1)
    assert read_resumed_attempts(root, 1) == {2, 4}


def test_the_claim_of_a_command_that_died_expires(root):
    old = {"attempt": 2, "time_unix_s": time.time() - CLAIM_LASTS_S - 1, "claimant": "x"}
    root.write_json(job_key(1, "resumes", "driver-a-0.json"), old)
    assert claim_resume(root, 1, "driver-a", 2)
    assert not claim_resume(root, 1, "driver-a", 2)
    assert read_resumed_attempts(root, 1) == {2}


def test_a_claim_that_is_damaged_has_expired_and_is_left_out(root):
    assert claim_resume(root, 1, "driver-a", 2)
    root.write_bytes("jobs/1/resumes/driver-a-0.json", b'{"format": 1, "attempt')
    assert claim_resume(root, 1, "driver-a", 3)
    assert not claim_resume(root, 1, "driver-a", 3)
    told: list[DocumentError] = []
    assert read_resumed_attempts(root, 1, told.append) == {3}
    assert [type(err) for err in told] == [DamagedDocumentError]


def test_a_job_whose_last_attempts_record_and_progress_are_damaged_waits_for_its_next_driver(root):
    for number in (1, 2):
        record = AttemptRecord(number, 1, 1, 1.0, 2.0, 9.0, None, 0, 5, 5, None, "")
        write_attempt(root, 1, record)
    for key in ("jobs/1/attempts/2.json", "jobs/1/progress.json"):
        root.write_bytes(key, b'{"format": 1, "step')
    reopen_job(root, job_record(), JobState("failed", 1.0, 20.0, 19.0, 2))
    assert read_state(root, 1).status == "waiting"
    assert read_progress(root, 1) == JobProgress()
    (record,) = read_attempts(root, 1, on_unreadable=lambda err: None)
    assert (record.number, record.cause, record.last_step) == (1, "driver", 5)


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "stat', None], ids=["empty", "torn", "gone"])
def test_a_job_whose_state_cannot_be_read_has_failed_when_no_driver_writes_it_anew(root, monkeypatch, content, capsys):
    monkeypatch.setattr(resumes, "HEARTBEAT_LOST_S", 0.0)
    write_attempt(root, 1, AttemptRecord(4, 1, 1, 1.0, 2.0, 9.0, 10.0, 0, 5, 5, "driver", "it died"))
    if content is not None:
        root.write_bytes("jobs/1/state.json", content)
    replace_unreadable_state(root, 1)
    text = "the job's driver died, and how the job stood is not known: its state is damaged"
    state = read_state(root, 1)
    assert (state.status, state.attempt, state.message) == ("failed", 4, text)
    assert [(event.kind, event.text) for event in read_events(root, 1)] == [("failed", text)]
    assert "waits for up to 0 s for a driver" in capsys.readouterr().err
    require_resumable(1, state)
    # Now it can be read.
    replace_unreadable_state(root, 1)
    assert len(read_events(root, 1)) == 1


def test_a_driver_that_lives_writes_a_damaged_state_anew(root, monkeypatch):
    monkeypatch.setattr(resumes, "_POLL_S", 0.01)
    root.write_bytes("jobs/1/state.json", b"")
    running = JobState("running", 1.0, None, time.time(), 1)
    heartbeat = threading.Timer(0.05, write_state, (root, 1, running))
    heartbeat.start()
    replace_unreadable_state(root, 1)
    heartbeat.join()
    assert read_state(root, 1) == running


def test_a_state_of_a_later_version_is_not_replaced(root):
    root.write_json("jobs/1/state.json", {"format": 2})
    with pytest.raises(NewerFormatError):
        replace_unreadable_state(root, 1)
    assert root.read_json("jobs/1/state.json") == {"format": 2}
