"""The driver's state while its storage is slow or away."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from periflow_ray import jobs
from periflow_ray.errors import NewerFormatError, StorageError
from periflow_ray.jobs import JobState
from periflow_ray.jobs.attempts import AttemptRecord, write_attempt
from periflow_ray.jobs.events import read_events
from periflow_ray.runtime import job_state
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.store.root import StorageRoot

WaitUntil = Callable[[Callable[[], bool]], None]


@pytest.fixture(autouse=True)
def _waiting_job(root: StorageRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.write_state(root, 1, JobState("waiting"))
    monkeypatch.setattr(job_state, "RETRY_INTERVAL_S", 0.01)


class Storage:
    """Writes of the state: they fail while it is away, and wait while it is held."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._write = jobs.write_state
        self.is_away = False
        self.num_refused = 0
        self.is_entered = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        monkeypatch.setattr(job_state.jobs, "write_state", self.write_state)

    def write_state(self, *arguments: Any) -> None:
        self.is_entered.set()
        self.may_go_on.wait()
        if self.is_away:
            self.num_refused += 1
            raise StorageError("the server answers 503")
        self._write(*arguments)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Storage:
    return Storage(monkeypatch)


def test_a_final_state_is_written_when_the_storage_is_back(
    root: StorageRoot, storage: Storage, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job_state, "SLOW_WRITE_S", 0.05)
    said = threading.Event()
    say = job_state._say

    def listen(text: str) -> None:
        say(text)
        if "not written yet" in text:
            said.set()

    monkeypatch.setattr(job_state, "_say", listen)

    def bring_back() -> None:
        said.wait()
        storage.is_away = False

    helper = threading.Thread(target=bring_back)
    helper.start()
    with StateKeeper(root, 1) as state:
        state.enter("running", "attempt 1 runs", 1)
        storage.is_away = True
        state.enter("success", None)
    helper.join()
    assert jobs.read_state(root, 1).status == "success"
    assert [event.kind for event in read_events(root, 1)] == ["running", "success"]
    errors = capfd.readouterr().err
    assert errors.count("the state of job 1 could not be written: the server answers 503") == 1
    assert "the final state of job 1 is not written yet (the server answers 503); trying for up to 300 s" in errors


def test_a_storage_that_stays_away_is_given_up(
    root: StorageRoot, storage: Storage, capfd: pytest.CaptureFixture[str], wait_until: WaitUntil
) -> None:
    with StateKeeper(root, 1, final_timeout_s=0.1) as state:
        storage.is_away = True
        state.enter("success", None)
        wait_until(lambda: storage.num_refused >= 3)
    assert state.status == "success"
    assert "the final state of job 1, success, could not be written: the server answers 503" in capfd.readouterr().err
    num_refused = storage.num_refused
    # After that nobody writes any more: another driver may have taken the job up.
    assert [thread.name for thread in threading.enumerate() if thread.name == "heartbeat"] == []
    assert storage.num_refused == num_refused


def test_nobody_waits_for_a_slow_storage(root: StorageRoot, storage: Storage) -> None:
    with StateKeeper(root, 1) as state:
        storage.is_entered.clear()
        storage.may_go_on.clear()
        state.enter("running", "attempt 1 runs", 1)
        storage.is_entered.wait()
        # The write of "running" is on its way; each of these would stand here for ever if it waited for it.
        state.note_waiting("for nothing")
        state.note("a sentence")
        state.enter("stopping", "stops on request")
        assert (state.status, state.attempt) == ("stopping", 1)
        storage.may_go_on.set()
        state.enter("stopped", "stopped on request")
    stored = jobs.read_state(root, 1)
    assert (stored.status, stored.attempt, stored.message) == ("stopped", 1, "stopped on request")
    assert [event.text for event in read_events(root, 1)] == [
        "attempt 1 runs",
        "for nothing",
        "a sentence",
        "stops on request",
        "stopped on request",
    ]


def test_what_is_noted_after_the_end_is_written_too(root: StorageRoot) -> None:
    with StateKeeper(root, 1) as state:
        state.enter("success", None)
    state.note("a message did not arrive")
    assert [event.text for event in read_events(root, 1)] == ["the job ended: success", "a message did not arrive"]


def test_an_error_of_the_driver_is_the_job_s_end(root: StorageRoot) -> None:
    with pytest.raises(KeyError), StateKeeper(root, 1):
        raise KeyError("a bug")
    stored = jobs.read_state(root, 1)
    assert (stored.status, stored.message) == ("failed", "the driver failed: KeyError: 'a bug'")


def test_a_failure_without_a_text_is_a_failure(root: StorageRoot) -> None:
    with StateKeeper(root, 1) as state:
        state.enter("failed", "")
    assert [event.text for event in read_events(root, 1)] == ["the job failed"]


def test_a_driver_whose_jobs_state_is_damaged_begins_it_anew_and_says_so(root: StorageRoot) -> None:
    for number in (1, 2):
        write_attempt(root, 1, AttemptRecord(number, 1, 1, 1.0, 2.0, 9.0, 10.0, 0, 5, 5, "driver", "it died"))
    root.write_bytes("jobs/1/state.json", b'{"format": 1, "stat')
    with StateKeeper(root, 1) as state:
        # A later attempt is told apart from those before.
        assert (state.status, state.attempt) == ("waiting", 2)
        state.enter("running", "attempt 3 runs", 3)
    assert jobs.read_state(root, 1).status == "running"
    assert [(event.kind, event.text) for event in read_events(root, 1)] == [
        ("note", "the job's state was damaged and is written anew"),
        ("running", "attempt 3 runs"),
    ]


def test_a_state_that_a_later_version_wrote_is_left_alone(root: StorageRoot) -> None:
    root.write_json("jobs/1/state.json", {"format": 2, "format_since": "0.4.0"})
    with pytest.raises(NewerFormatError, match=r"Version 0\.4\.0 or later reads it"):
        StateKeeper(root, 1)
    assert root.read_json("jobs/1/state.json")["format"] == 2


def test_no_event_and_no_message_tells_a_secret(root: StorageRoot) -> None:
    with StateKeeper(root, 1) as state:
        state.hide(["hunter2"])
        state.note("logs in with hunter2")
        state.note_waiting("waits for hunter2")
        state.enter_failure(RuntimeError("401 for hunter2"))
        assert state.message == "the driver failed: RuntimeError: 401 for ***"
    assert jobs.read_state(root, 1).message == state.message
    assert [event.text for event in read_events(root, 1)] == [
        "logs in with ***",
        "waits for ***",
        "the job failed: the driver failed: RuntimeError: 401 for ***",
    ]


def test_a_driver_that_comes_late_is_not_taken_for_dead_by_itself(root: StorageRoot) -> None:
    """Its predecessor was killed hours ago, or the clock of its machine was hours behind."""
    jobs.write_state(root, 1, JobState("running", heartbeat_unix_s=1000.0, attempt=3))
    with StateKeeper(root, 1) as state:
        assert (state.status, state.attempt) == ("running", 3)
        state.enter("success", None)
    assert jobs.read_written_state(root, 1).status == "success"
