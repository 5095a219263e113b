"""A member's log while its storage is slow, fails, or is gone: nobody who writes a line waits for it or fails."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from periflow_ray.errors import StorageError
from periflow_ray.jobs.events import EventWriter, read_events
from periflow_ray.jobs.logs import LogWriter, read_logs
from periflow_ray.runtime.member import log as log_module
from periflow_ray.runtime.member.line_buffer import LineBuffer
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.store.root import StorageRoot


class LogRoot(StorageRoot):
    """A storage root whose first writes of a log do what a test wants."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.held_part = "/logs/"
        self.num_flushes = 0
        self.on_flush: Callable[[int], None] = lambda number: None

    def create_exclusive(self, key: str, content: bytes) -> bool:
        if self.held_part in key:
            self.num_flushes += 1
            self.on_flush(self.num_flushes)
        return super().create_exclusive(key, content)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogRoot:
    monkeypatch.setattr(log_module, "LOCAL_FLUSH_INTERVAL_S", 0.01)
    return LogRoot(str(tmp_path / "storage"))


@pytest.fixture
def log(root: LogRoot) -> Iterator[MemberLog]:
    with MemberLog(LogWriter(root, 1, 0), "node 0", is_local=True) as log:
        yield log


def read_lines(root: StorageRoot) -> list[str]:
    return [line.text for line in read_logs(root, 1) if line.node_rank is not None]


def test_writing_a_line_never_waits_for_the_storage(root, log, wait_until):
    is_held, is_free = threading.Event(), threading.Event()

    def hold(number: int) -> None:
        is_held.set()
        is_free.wait(60)

    root.on_flush = hold
    log.write("first")
    assert is_held.wait(30)
    for number in range(1000):
        log.write(f"line {number}")
    assert not is_free.is_set()
    is_free.set()
    wait_until(lambda: len(read_lines(root)) == 1001)


@pytest.mark.parametrize("error", [StorageError("503 SlowDown"), OSError(5, "I/O error"), RuntimeError("a bug")])
def test_a_flush_that_fails_ends_nothing_and_loses_nothing(root, log, wait_until, error):
    def fail_twice(number: int) -> None:
        if number <= 2:
            raise error

    root.on_flush = fail_twice
    log.write("first")
    wait_until(lambda: root.num_flushes > 2)
    log.write("second")
    # Streaming goes on while the job runs.
    wait_until(lambda: read_lines(root) == ["first", "second"])


@pytest.mark.parametrize("error", [StorageError("503 SlowDown"), RuntimeError("a bug")])
def test_a_storage_that_is_gone_at_the_end_is_told_and_not_raised(root, capfd, error):
    def fail(number: int) -> None:
        raise error

    root.on_flush = fail
    with MemberLog(LogWriter(root, 1, 0), "node 0", is_local=True) as log:
        log.write("lost")
    log.flush()
    assert str(error) in capfd.readouterr().err


def test_secrets_are_masked_before_anything_is_stored(root):
    with MemberLog(LogWriter(root, 1, 0), "node 0", is_local=True, secrets=["hunter2", ""]) as log:
        assert log.write("the password is hunter2") == "the password is ***"
    assert read_lines(root) == ["the password is ***"]


def test_a_storage_that_is_away_costs_lines_in_the_middle_and_says_how_many(root, wait_until):
    is_away = True

    def refuse(number: int) -> None:
        if is_away:
            raise StorageError("503 SlowDown")

    root.on_flush = refuse
    buffer = LineBuffer(max_half_bytes=200_000)
    events = EventWriter(root, 1, "node-0")
    with MemberLog(LogWriter(root, 1, 0), "node 0", is_local=True, events=events, buffer=buffer) as log:
        for number in range(50_000):
            log.write(f"line {number}")
        wait_until(lambda: root.num_flushes > 1)
        is_away = False
    lines = read_lines(root)
    following, num_dropped = 0, 0
    for line in lines:
        if gap := re.fullmatch(r"\[([\d,]+) lines are missing here: the storage did not take them in time\]", line):
            num_dropped += int(gap[1].replace(",", ""))
            following += int(gap[1].replace(",", ""))
        else:
            assert line == f"line {following}"
            following += 1
    assert following == 50_000
    assert num_dropped > 40_000
    assert [event.text for event in read_events(root, 1)] == [
        "lines are missing in the log of node 0, because the storage did not take them in time; the log says where, "
        "and how many"
    ]


def test_a_full_buffer_holds_no_more_than_its_bounds():
    buffer = LineBuffer(max_half_bytes=10_000)
    for number in range(10_000):
        buffer.add((number, "x" * 100))
    taken = buffer.take()
    assert len(taken.first) + taken.num_dropped + len(taken.last) == 10_000
    assert sum(len(text) for _, text in taken.first + taken.last) <= 20_000
    assert buffer.take().first == buffer.take().last == []
    # One line that is too long by itself is kept.
    buffer.add((1, "x" * 1_000_000))
    assert buffer.take().last == [(1, "x" * 1_000_000)]


@pytest.mark.parametrize("held_part", ["/logs/", "/events/"])
def test_a_note_never_waits_for_the_storage_and_tells_no_secret(root, wait_until, held_part):
    is_held, is_free = threading.Event(), threading.Event()

    def hold(number: int) -> None:
        is_held.set()
        is_free.wait(60)

    root.on_flush = hold
    events = EventWriter(root, 1, "node-0")
    root.held_part = held_part
    with MemberLog(LogWriter(root, 1, 0), "node 0", is_local=True, secrets=["hunter2"], events=events) as log:
        log.write("first")
        log.note("note 0 of hunter2", attempt=2)
        assert is_held.wait(30)
        for number in range(1, 100):
            log.note(f"note {number} of hunter2", attempt=2)
        assert read_events(root, 1) == []
        is_free.set()
        wait_until(lambda: len(read_events(root, 1)) == 100)
    assert [(event.kind, event.text, event.attempt) for event in read_events(root, 1)] == [
        ("note", f"note {number} of ***", 2) for number in range(100)
    ]
