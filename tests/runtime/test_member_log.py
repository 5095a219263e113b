"""A member's log while its storage is slow, fails, or is gone: nobody who writes a line waits for it or fails."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from periflow_ray.errors import StorageError
from periflow_ray.jobs.events import EventWriter, read_events
from periflow_ray.jobs.logs import LogWriter, read_logs
from periflow_ray.runtime.function_jobs.output import copy_output
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
    # Far more than a pipe holds, while the flush stands still.
    with copy_output(log):
        for number in range(1000):
            print(f"line {number} {'x' * 300}")
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


def test_a_very_long_line_that_a_function_prints_comes_in_pieces_and_whole(root):
    """As a command's."""
    with MemberLog(LogWriter(root, 1, 0), "rank 0", is_local=True) as log, copy_output(log):
        print("x" * 1_000_000)
        print("\nnext")
    *pieces, empty, last = read_lines(root)
    assert ("".join(pieces), empty, last) == ("x" * 1_000_000, "", "next")
    assert max(map(len, pieces)) <= 65_536


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


def test_several_lines_of_a_secret_are_masked_one_by_one(root):
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqh\n-----END KEY-----"
    with MemberLog(LogWriter(root, 1, 0), "rank 0", is_local=True, secrets=[key]) as log, copy_output(log):
        print("the key:", key)
        print("hunt", end="", flush=True)
        print("er2", end="")
    assert read_lines(root) == ["the key: ***", "***", "***", "hunter2"]


def test_ray_gets_no_secret_that_is_printed_in_pieces(root, capfd):
    with MemberLog(LogWriter(root, 1, 0), "rank 0", is_local=True, secrets=["hunter2"]) as log, copy_output(log):
        print("hunt", end="", flush=True)
        print("er2!")
    assert capfd.readouterr().out == "***!\n"


def test_the_log_has_whatever_a_function_its_libraries_and_its_commands_print(root, capfd):
    with MemberLog(LogWriter(root, 1, 0), "rank 0", is_local=True) as log:
        former = sys.stdout, sys.stderr, sys.__stderr__
        with copy_output(log):
            sys.stdout.buffer.write("바이트\n".encode())
            sys.stdout.flush()
            sys.stdout.reconfigure(line_buffering=True)
            print(sys.stdout.encoding, sys.stdout.isatty(), sys.stdout.fileno())
            os.write(1, b"of a library\n")
            subprocess.run(["echo", "of a command"], check=True)
            subprocess.run("printf 'an error' >&2", shell=True, check=True)
            for step in range(3):
                print(f"\r{step + 1}/3", end="", file=sys.stdout)
            logging.StreamHandler().emit(logging.makeLogRecord({"msg": "of a logger"}))
            for _ in range(2):
                print("\udcff no text")
        assert (sys.stdout, sys.stderr, sys.__stderr__) == former
    printed = capfd.readouterr()
    lines = printed.out.splitlines()
    assert lines == ["바이트", "utf-8 False 1", "of a library", "of a command", "3/3\\udcff no text", "\\udcff no text"]
    assert printed.err == "an errorof a logger\n"
    assert sorted(read_lines(root)) == sorted([*lines, "an errorof a logger"])


def test_a_command_that_outlives_the_function_holds_nothing_up(root):
    with MemberLog(LogWriter(root, 1, 0), "rank 0", is_local=True) as log:
        with copy_output(log):
            command = subprocess.Popen("echo begins; read line; echo goes on", shell=True, stdin=subprocess.PIPE)
            print("the function ends")
        assert command.poll() is None
        command.communicate(b"\n", timeout=30)
    assert "the function ends" in read_lines(root)


def test_more_than_a_pipe_holds_is_printed_while_nobody_else_runs(root):
    """C code that holds Python's lock keeps the thread that reads from running."""
    printf = ctypes.PyDLL(None).printf
    flush = ctypes.PyDLL(None).fflush
    with MemberLog(LogWriter(root, 1, 0), "rank 0", is_local=True) as log, copy_output(log):
        printf(b"%s\n", b"x" * 500_000)
        flush(None)
    assert "".join(read_lines(root)) == "x" * 500_000


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
