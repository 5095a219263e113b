"""The loops of a driver, its monitor and a watcher get an unexpected error at their first, second and last time.

Long because each loop needs a stand-in of what it talks to.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from injected_errors import INTERVAL_S, TIMES, Time, Turns, WaitUntil

from periflow_ray import jobs
from periflow_ray.jobs import JobState
from periflow_ray.jobs.attempts import AttemptRecord, EndCause
from periflow_ray.jobs.events import read_events
from periflow_ray.jobs.metrics import Metric, read_metrics
from periflow_ray.jobs.requests import Request, StopRequest, post_request
from periflow_ray.runtime import job_requests, job_state, supervision
from periflow_ray.runtime.job_requests import JobRequests
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.runtime.monitor.client import MonitorLostError
from periflow_ray.runtime.monitor.contract import AttemptNews, Ending
from periflow_ray.runtime.monitor.recorder import Recorder
from periflow_ray.runtime.monitor.sinks import DEFAULT_SINKS, open_sinks
from periflow_ray.runtime.notices import departure
from periflow_ray.runtime.notices.departure import Watcher
from periflow_ray.runtime.notices.notice import Notice
from periflow_ray.runtime.outbox import Outbox
from periflow_ray.runtime.supervision import Supervision
from periflow_ray.store.root import StorageRoot


@pytest.fixture
def add_state(root: StorageRoot) -> None:
    """Job 1 waits for its driver."""
    jobs.write_state(root, 1, JobState("waiting"))


@pytest.fixture
def quick_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats follow each other at once."""
    monkeypatch.setattr(job_state, "RETRY_INTERVAL_S", INTERVAL_S)
    monkeypatch.setattr(job_state, "HEARTBEAT_INTERVAL_S", INTERVAL_S)


@pytest.mark.usefixtures("add_state", "quick_state")
@pytest.mark.parametrize("place", ["state", "events"])
def test_the_heartbeat_and_the_final_state(
    turns: Turns, place: str, root: StorageRoot, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    write_state, flush = jobs.write_state, job_state.EventWriter.flush

    def write(*arguments: Any) -> None:
        turns()
        write_state(*arguments)

    def flush_events(writer: Any) -> None:
        turns()
        flush(writer)

    if place == "state":
        monkeypatch.setattr(job_state.jobs, "write_state", write)
    else:
        monkeypatch.setattr(job_state.EventWriter, "flush", flush_events)
    with StateKeeper(root, 1) as state:
        state.enter("running", "attempt 1 runs", 1)
        wait_until(lambda: turns.num >= 4)
        turns.is_last = True
        state.enter("success", None)
    assert turns.num_raised == 1
    stored = jobs.read_state(root, 1)
    assert (stored.status, stored.attempt) == ("success", 1)
    texts = [event.text for event in read_events(root, 1)]
    told = "writing the job's state failed unexpectedly (RuntimeError: injected) and goes on."
    assert sorted(texts) == sorted(["attempt 1 runs", "the job ended: success", told])


@pytest.mark.usefixtures("add_state")
@pytest.mark.parametrize("place", ["look", "carry_out"])
def test_requests_of_the_user(
    turns: Turns,
    place: str,
    root: StorageRoot,
    problems: list[str],
    monkeypatch: pytest.MonkeyPatch,
    wait_until: WaitUntil,
) -> None:
    monkeypatch.setattr(job_requests, "POLL_INTERVAL_S", INTERVAL_S)
    asked: list[float] = []
    take_requests = job_requests.take_requests

    def take(*arguments: Any) -> Any:
        turns()
        return take_requests(*arguments)

    def carry_out(request: Request) -> None:
        if place == "carry_out":
            turns()
        assert isinstance(request, StopRequest)
        asked.append(request.timeout_s)

    if place == "look":
        monkeypatch.setattr(job_requests, "take_requests", take)
    post_request(root, 1, StopRequest(99.0))  # Of an earlier driver.
    with JobRequests(root, 1, carry_out, on_problem=problems.append):
        for timeout_s in (1.0, 2.0, 3.0):
            turns.is_last = timeout_s == 3.0
            post_request(root, 1, StopRequest(timeout_s))
            wait_until(lambda: root.list_names("jobs/1/requests") == [])
        wait_until(lambda: len(asked) >= (3 if place == "look" else 2))
    assert turns.num_raised == 1
    lost = {"first": 1.0, "second": 2.0, "last": 3.0}[turns.failing] if place == "carry_out" else None
    assert asked == [timeout_s for timeout_s in (1.0, 2.0, 3.0) if timeout_s != lost]
    assert problems == ["looking for requests of the user failed unexpectedly (RuntimeError: injected) and goes on."]


class MonitorWithoutMembers:
    """Waits for the first attempt until it is ended."""

    def __init__(self) -> None:
        self._has_ended = threading.Event()

    def wait_for_attempt(self, number: int) -> AttemptNews:
        self._has_ended.wait()
        raise MonitorLostError("it has ended")

    def end(self) -> None:
        self._has_ended.set()


@pytest.mark.usefixtures("add_state")
def test_what_a_job_waits_for(
    turns: Turns,
    root: StorageRoot,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    wait_until: WaitUntil,
) -> None:
    def is_pending() -> bool:
        turns()
        return True

    monkeypatch.setattr(supervision, "WAIT_NOTE_S", INTERVAL_S)
    monkeypatch.setattr(supervision, "_is_placement_pending", is_pending)
    monkeypatch.setattr(supervision.ray, "available_resources", lambda: {"CPU": 1.0})
    launch = "1 x mine: launching since 12:00:00 UTC"
    monkeypatch.setattr(supervision, "_find_launches", lambda: [launch])
    with (
        StateKeeper(root, 1) as state,
        Supervision(
            MonitorWithoutMembers(),  # type: ignore[arg-type]
            state,
            num_members=2,
            resources_per_member={"CPU": 1.0},
            notifier=None,
            on_attempt=lambda news: None,
            on_lost=lambda: None,
        ),
    ):
        wait_until(lambda: turns.num >= 4)
        turns.is_last = True
        wait_until(lambda: turns.num_raised == 1)
    texts = [event.text for event in read_events(root, 1) if event.kind == "waiting"]
    assert texts == [
        f"waits for 2 x (1 CPU); the cluster has 1 CPU free, and a job that asks for less may start before it; {launch}"
    ]
    trace = "looking for what the job waits for failed unexpectedly and goes on"
    assert capfd.readouterr().err.count(trace) == 1


class MonitorOfOneFailure(MonitorWithoutMembers):
    """Its first attempt fails; then it waits until it is ended."""

    def __init__(self, cause: EndCause, why_over: str | None) -> None:
        super().__init__()
        self._record = AttemptRecord(1, 1, 1, 0.0, 1.0, 2.0, 3.0, 0, 7, 0, cause, "node 0, rank 0: exit code 1")
        self._why_over = why_over

    def wait_for_attempt(self, number: int) -> AttemptNews:
        return AttemptNews(1, 1, 1) if number == 1 else super().wait_for_attempt(number)

    def wait_for_start(self, number: int) -> None:
        """It has started."""

    def wait_for_end(self, number: int) -> AttemptRecord:
        return self._record

    def describe_end(self) -> Ending:
        return Ending(self._why_over)


class KeptMessages:
    """A notifier that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str, str | None]] = []

    def notify(self, kind: str, text: str = "", *, next_text: str | None = None, **facts: object) -> None:
        self.messages.append((kind, text, next_text))


@pytest.mark.usefixtures("add_state")
@pytest.mark.parametrize(
    ("cause", "why_over", "kept"),
    [
        ("failure", None, [("attempt_failed", "node 0, rank 0: exit code 1", None)]),
        (
            "failure",
            "it failed 1 time(s); max_failures allows 0",
            [
                (
                    "attempt_failed",
                    "node 0, rank 0: exit code 1",
                    "it does not start again: it failed 1 time(s); max_failures allows 0.",
                )
            ],
        ),
        ("resize", None, []),
    ],
)
def test_a_message_promises_no_restart_that_does_not_come(
    root: StorageRoot,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: WaitUntil,
    cause: EndCause,
    why_over: str | None,
    kept: list[tuple[str, str, str | None]],
) -> None:
    monkeypatch.setattr(supervision, "_is_placement_pending", lambda: False)
    notifier, monitor = KeptMessages(), MonitorOfOneFailure(cause, why_over)
    with (
        StateKeeper(root, 1) as state,
        Supervision(
            monitor,  # type: ignore[arg-type]
            state,
            num_members=1,
            resources_per_member={"CPU": 1.0},
            notifier=notifier,  # type: ignore[arg-type]
            on_attempt=lambda news: None,
            on_lost=lambda: None,
        ) as supervised,
    ):
        # The second attempt is waited for when the first one's end has been told.
        wait_until(lambda: state.attempt == 1 and supervised._waiting.is_set())
    assert notifier.messages == kept


@pytest.mark.usefixtures("add_state")
def test_an_elastic_job_without_room_says_what_it_waits_for(
    root: StorageRoot, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    monkeypatch.setattr(supervision, "WAIT_NOTE_S", INTERVAL_S)
    # It makes no placement group before there is room.
    monkeypatch.setattr(supervision, "_read_own_groups", list)
    monkeypatch.setattr(supervision.ray, "available_resources", dict)
    monkeypatch.setattr(supervision, "_find_launches", list)
    with (
        StateKeeper(root, 1) as state,
        Supervision(
            MonitorWithoutMembers(),  # type: ignore[arg-type]
            state,
            num_members=4,
            resources_per_member={"CPU": 1.0},
            notifier=None,
            on_attempt=lambda news: None,
            on_lost=lambda: None,
            min_num_members=2,
        ),
    ):
        wait_until(lambda: any(event.kind == "waiting" for event in read_events(root, 1)))
    texts = [event.text for event in read_events(root, 1) if event.kind == "waiting"]
    assert texts == ["waits for at least 2 of 4 x (1 CPU); the cluster has 0 CPU free"]


class TurningSource:
    """A cloud that announces a preemption after the turn that fails."""

    cloud_name = "Cloud"
    interval_s = 1.0

    def __init__(self, turns: Callable[[], None]) -> None:
        self._turns = turns
        self.notice: Notice | None = None

    def is_present(self) -> bool:
        return True

    def poll(self) -> Notice | None:
        self._turns()
        notice, self.notice = self.notice, None
        return notice

    def acknowledge(self, notice: Notice) -> None:
        pass


class TurningMachine:
    """A machine that takes a turn before it is drained."""

    def __init__(self, turns: Callable[[], None]) -> None:
        self._turns = turns
        self.drains: list[str] = []

    def drain(self, reason: str, deadline_unix_s: float) -> Sequence[str]:
        self._turns()
        self.drains.append(reason)
        return ["node"]

    def is_needed(self, node_ids: Sequence[str]) -> bool:
        return False

    def release(self, node_ids: Sequence[str], reason: str) -> None:
        pass


@pytest.mark.parametrize("place", ["poll", "drain"])
@pytest.mark.parametrize("error", [RuntimeError, RecursionError])
@pytest.mark.parametrize("failing", ["first", "second"])
def test_the_watcher_of_notices(place: str, error: type[Exception], failing: Time) -> None:
    turns, lines, now_s = Turns(failing, error), [], 1000.0
    source = TurningSource(turns if place == "poll" else lambda: None)
    machine = TurningMachine(turns if place == "drain" else lambda: None)
    watcher = Watcher([source], machine, lines.append, unix_s=lambda: now_s, monotonic_s=lambda: now_s)
    for number in range(3):
        source.notice = Notice("preemption", now_s + 60, f"event-{number}", f"notice {number}")
        end_s = now_s + 30
        while now_s < end_s:
            now_s += max(watcher.tick(), 0.01)
    assert turns.num_raised == 1
    assert machine.drains == ["notice 0", "notice 1", "notice 2"]
    assert len([line for line in lines if f"{error.__name__}: injected" in line]) == 1


def test_the_watcher_s_own_loop(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    turns = Turns("second")
    watcher = Watcher([], TurningMachine(lambda: None), lambda line: None)
    num_pauses = 0

    def tick() -> float:
        turns()
        return 0.0

    def sleep(seconds: float) -> None:
        nonlocal num_pauses
        num_pauses += 1
        if num_pauses == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(watcher, "tick", tick)
    monkeypatch.setattr(departure.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        watcher.run()
    assert (turns.num, turns.num_raised) == (5, 1)
    assert capfd.readouterr().err.count("RuntimeError: injected") == 1


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
@pytest.mark.parametrize("failing", TIMES)
def test_what_sends_messages_and_metrics_to_others(
    failing: Time, error: type[BaseException], problems: list[str], wait_until: WaitUntil
) -> None:
    turns, delivered, finished = Turns(failing, error), [], []

    def deliver(item: int) -> None:
        turns()
        delivered.append(item)

    outbox = Outbox[int](
        "the server", deliver, problems.append, max_items=10, finish=lambda: finished.append(len(delivered))
    )
    for item in range(4):
        turns.is_last = item == 3
        outbox.put(item)
        wait_until(lambda number=item + 1: turns.num == number)
    outbox.begin_close()
    outbox.end_close(time.monotonic() + 60)
    lost = {"first": 0, "second": 1, "last": 3}[failing]
    assert delivered == [item for item in range(4) if item != lost]
    assert finished == [3]
    assert problems == [f"not everything reaches the server: {error.__name__}. The job goes on without it."]


class TurningSink:
    """A metric sink that takes a turn in one of its methods."""

    def __init__(self, turns: Turns, method: str) -> None:
        self._turns = turns
        self._method = method

    def record(self, metrics: Sequence[Metric]) -> None:
        self._take_turn("record")

    def flush(self) -> None:
        self._take_turn("flush")

    def close(self) -> None:
        self._take_turn("close")

    def _take_turn(self, method: str) -> None:
        if method == self._method:
            self._turns()


@pytest.mark.parametrize(
    ("method", "failing"),
    [*((method, failing) for method in ("record", "flush") for failing in TIMES), ("close", "last")],
)
@pytest.mark.parametrize("is_before", [True, False])
def test_a_metric_sink_that_fails_reaches_neither_the_others_nor_the_progress(
    method: str, failing: Time, is_before: bool, root: StorageRoot, problems: list[str]
) -> None:
    importlib.import_module("tensorboardX")  # Which may take longer than the end of a job waits for.
    turns = Turns(failing)
    others = open_sinks(DEFAULT_SINKS, root, 1, problems.append)
    faulty = TurningSink(turns, method)
    recorder = Recorder(root, 1, [faulty, *others] if is_before else [*others, faulty], problems.append)
    for step in (1, 2, 3):
        turns.is_last = step == 3
        recorder.record(step, 10, [Metric(step, 0, 0, 1.0, {"loss": step})])
        recorder.try_flush()
    recorder.close()
    assert turns.num_raised == 1
    assert [metric.step for metric in read_metrics(root, 1)] == [1, 2, 3]
    assert jobs.read_progress(root, 1).step == 3
    assert problems == ["the metric sink TurningSink failed unexpectedly (RuntimeError: injected) and goes on."]
