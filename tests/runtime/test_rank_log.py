"""What a rank prints is in its log, however the rank ends: the log's keeper is a process beside it.

Long because every way to print, and every way to end, is tried here.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from periflow_ray.jobs.events import read_events
from periflow_ray.jobs.logs import LogWriter, read_last_lines, read_logs
from periflow_ray.processes.keeper import find_descendants
from periflow_ray.runtime.function_jobs import log_keeper
from periflow_ray.runtime.function_jobs.log_keeper import Channels, LogKeeper, LogTask, Process
from periflow_ray.runtime.function_jobs.rank_log import RankLog, ThreadKeeper
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.store.root import StorageRoot

SECRET = "hunter2"
MARKER = "PERIFLOW_TEST_MARKER"
# A rank as Ray starts it, but for Ray: it prints in every way there is, and dies.
RANK = """
import ctypes, faulthandler, os, signal, subprocess, sys
from periflow_ray.runtime.function_jobs.log_keeper import LogTask
from periflow_ray.runtime.function_jobs.rank_log import RankLog
from periflow_ray.store.root import StorageRoot

faulthandler.enable(2, all_threads=False)
with RankLog.of(LogTask(StorageRoot(sys.argv[1]), 1, 0, 0, ("hunter2",))) as log, log.copy_output():
    for number in range(2000):
        print("line", number)
    subprocess.run(["echo", "of a command"])
    os.write(1, b"of a library\\n")
    log.note("a note")
    print("the password is hunter2")
    print("without a line end", end="", flush=True)
    {end}
"""
ENDS = {
    "exit": "os._exit(3)",
    "kill": "os.kill(os.getpid(), signal.SIGKILL)",
    "abort": "os.abort()",
    "segfault": "ctypes.string_at(0)",
}
PRINTED = [
    *(f"line {number}" for number in range(2000)),
    "of a command",
    "of a library",
    "the password is ***",
    "without a line end",
]


@pytest.fixture
def root(tmp_path: Path) -> StorageRoot:
    return StorageRoot(str(tmp_path / "storage"))


@pytest.fixture
def log(root: StorageRoot) -> Iterator[RankLog]:
    with open_log(root) as log:
        yield log


def open_log(root: StorageRoot, secret: str = SECRET) -> RankLog:
    """The log of this process, which is rank 0 of job 1."""
    return RankLog.of(LogTask(root, 1, 0, 0, (secret,)))


def read_lines(root: StorageRoot) -> list[str]:
    return [line.text for line in read_logs(root, 1) if line.node_rank is not None]


def run_rank(root: StorageRoot, directory: Path, end: str) -> tuple[int, str]:
    """Run a rank to its end; returns its exit code, and what marks its processes.

    Args:
        directory: gets ``rank.out`` and ``rank.err``, as Ray has files for what a worker prints.
    """
    marker = uuid.uuid4().hex
    command = [sys.executable, "-c", RANK.replace("{end}", ENDS[end]), root.uri]
    with open(directory / "rank.out", "w") as out, open(directory / "rank.err", "w") as err:
        ended = subprocess.run(command, env={**os.environ, MARKER: marker}, stdout=out, stderr=err, timeout=60)
    return ended.returncode, marker


def find_marked(marker: str) -> list[str]:
    """Command lines of the processes that a rank left behind."""
    found = []
    for directory in Path("/proc").iterdir():
        try:
            if directory.name.isdigit() and f"{MARKER}={marker}".encode() in (directory / "environ").read_bytes():
                found.append((directory / "cmdline").read_bytes().decode())
        except OSError:
            continue
    return found


@pytest.mark.parametrize("end", ENDS)
def test_the_last_words_of_a_rank_that_dies_are_in_its_log_and_nothing_is_left(root, tmp_path, wait_until, end):
    exit_code, marker = run_rank(root, tmp_path, end)
    wait_until(lambda: not find_marked(marker))
    lines = read_lines(root)
    errors = [line for line in lines if line not in PRINTED]
    assert [line for line in lines if line in PRINTED] == PRINTED
    assert exit_code == {"exit": 3, "kill": -9, "abort": -6, "segfault": -11}[end]
    assert any("Segmentation fault" in line for line in errors) == (end == "segfault")
    assert any("Aborted" in line for line in errors) == (end == "abort")
    assert [(event.kind, event.text) for event in read_events(root, 1)] == [("note", "a note")]
    # Ray gets the same.
    assert (tmp_path / "rank.out").read_text().splitlines() == PRINTED
    assert (tmp_path / "rank.err").read_text().splitlines() == errors


def test_the_last_words_of_a_rank_reach_a_bucket(moto_server, tmp_path, wait_until, monkeypatch):
    for name, value in moto_server.environment.items():
        monkeypatch.setenv(name, value)
    root = StorageRoot(moto_server.make_uri("last-words"))
    _, marker = run_rank(root, tmp_path, "kill")
    wait_until(lambda: not find_marked(marker))
    assert read_lines(root) == PRINTED


def test_the_last_words_of_a_rank_wait_for_a_storage_that_is_away(root, tmp_path, wait_until):
    # A file in the place of the storage's directory.
    Path(root.uri).write_text("")
    _, marker = run_rank(root, tmp_path, "kill")
    assert find_marked(marker)
    Path(root.uri).unlink()
    wait_until(lambda: not find_marked(marker))
    assert read_lines(root) == PRINTED


def test_a_child_that_outlives_its_rank_holds_the_keeper_for_some_seconds_only(root, monkeypatch):
    monkeypatch.setattr(log_keeper, "LOOK_INTERVAL_S", 0.01)
    monkeypatch.setattr(log_keeper, "LAST_OUTPUT_S", 0.1)
    (out, child), (err, _), (words, _), (answers_read, answers) = pipes = [os.pipe() for _ in range(4)]
    try:
        with subprocess.Popen(["sleep", "1000"]) as process:

            class Rank(Process):
                """One whose child prints when the rank is known to be dead."""

                def is_running(self) -> bool:
                    is_running = super().is_running()
                    if not is_running:
                        os.write(child, b"after it\n")
                    return is_running

            rank = Rank.of(process.pid)
            log = MemberLog(LogWriter(root, 1, 0, 0), "rank 0", is_local=True)
            keeper = LogKeeper(log, Channels((out, err), (out, err), words, answers), rank)
            reading = threading.Thread(target=keeper.read)
            reading.start()
            os.write(child, b"while the rank lives\n")
            assert reading.is_alive()
            process.kill()
            # Its parent waits for it later.
            reading.join(30)
            assert not reading.is_alive()
        keeper.settle()
        assert os.read(answers_read, 1) == b""
    finally:
        for fd in {fd for pipe in pipes for fd in pipe} - {answers}:
            os.close(fd)
    assert read_lines(root) == ["while the rank lives", "after it"]


def test_a_keeper_that_is_killed_is_followed_by_another_one(root):
    others = set(find_descendants(os.getpid()))
    with open_log(root) as log, log.copy_output():
        print("before")
        log.flush()
        # One process waits for the other, which is the keeper; servers of other tests are below this one, too.
        for pid in set(find_descendants(os.getpid())) - others:
            with contextlib.suppress(ProcessLookupError):  # It has ended with the other one.
                os.kill(pid, signal.SIGKILL)
        # Nobody is told meanwhile that nobody reads.
        subprocess.run(["echo", "of a command"], check=True)
        for number in range(20_000):
            print(number, "x" * 100)
    lines = read_lines(root)
    assert "[the process that keeps this log was killed: lines may be missing here]" in lines
    assert lines[0] == "before"
    assert "of a command" in lines
    assert [line for line in lines if line.endswith("x")] == [f"{number} {'x' * 100}" for number in range(20_000)]


class DeadKeeper:
    """No process can be started."""

    def start(self, channels: Channels) -> None:
        os.close(channels.answers)
        raise BlockingIOError("Resource temporarily unavailable")

    def join(self, timeout_s: float) -> None:
        raise AssertionError("it was never there")


def test_where_no_process_can_be_had_a_thread_keeps_the_log(root, capfd):
    kept = MemberLog(LogWriter(root, 1, 0, 0), "rank 0", is_local=True)
    with RankLog(kept.mask, [DeadKeeper(), ThreadKeeper(kept)]) as log, log.copy_output():
        print("printed")
        log.write("written")
    assert sorted(read_lines(root)) == ["printed", "written"]
    assert "Resource temporarily unavailable" in capfd.readouterr().err


def test_printing_never_waits_for_the_storage(tmp_path, wait_until):
    is_held, is_free = threading.Event(), threading.Event()

    class HeldRoot(StorageRoot):
        def create_exclusive(self, key: str, content: bytes) -> bool:
            is_held.set()
            is_free.wait(60)
            return super().create_exclusive(key, content)

    root = HeldRoot(str(tmp_path / "storage"))
    kept = MemberLog(LogWriter(root, 1, 0, 0), "rank 0", is_local=True)
    with RankLog(kept.mask, [ThreadKeeper(kept)]) as log:
        log.write("first")
        assert is_held.wait(30)
        # Far more than a pipe holds, while the flush stands still.
        with log.copy_output():
            for number in range(10_000):
                print(f"line {number} {'x' * 300}")
        assert not is_free.is_set()
        is_free.set()
    assert len(read_lines(root)) == 10_001


def test_a_very_long_line_that_a_function_prints_comes_in_pieces_and_whole(root, log):
    """As a command's."""
    with log.copy_output():
        print("x" * 1_000_000)
        print("\nnext")
    log.flush()
    *pieces, empty, last = read_lines(root)
    assert ("".join(pieces), empty, last) == ("x" * 1_000_000, "", "next")
    assert max(map(len, pieces)) <= 65_536


def test_several_lines_of_a_secret_are_masked_one_by_one(root):
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqh\n-----END KEY-----"
    with open_log(root, key) as log, log.copy_output():
        print("the key:", key)
        print("hunt", end="", flush=True)
        print("er2", end="")
    assert read_lines(root) == ["the key: ***", "***", "***", "hunter2"]


def test_ray_gets_no_secret_that_is_printed_in_pieces(root, capfd):
    with open_log(root) as log, log.copy_output():
        print("hunt", end="", flush=True)
        print("er2!")
    assert capfd.readouterr().out == "***!\n"


def test_the_log_has_whatever_a_function_its_libraries_and_its_commands_print(root, capfd):
    former = sys.stdout, sys.stderr, sys.__stderr__
    with open_log(root) as log, log.copy_output():
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
    with open_log(root) as log:
        with log.copy_output():
            command = subprocess.Popen("echo begins; read line; echo goes on", shell=True, stdin=subprocess.PIPE)
            print("the function ends")
        assert command.poll() is None
        command.communicate(b"\n", timeout=30)
    assert {"the function ends", "goes on"} <= set(read_lines(root))


def test_more_than_a_pipe_holds_is_printed_while_no_other_thread_runs(root, log):
    """C code that holds Python's lock keeps every other thread from running."""
    printf = ctypes.PyDLL(None).printf
    flush = ctypes.PyDLL(None).fflush
    with log.copy_output():
        printf(b"%s\n", b"x" * 5_000_000)
        flush(None)
    log.flush()
    assert "".join(read_lines(root)) == "x" * 5_000_000


def test_a_fork_that_leaves_the_functions_call_ends_nobodys_log(root):
    with open_log(root) as log:
        with contextlib.suppress(SystemExit), log.copy_output():
            child = os.fork()
            print("of the child" if child == 0 else "of the rank")
            if child == 0:
                sys.exit()
        if child == 0:
            log.__exit__()
            os._exit(0)
        os.waitpid(child, 0)
        with log.copy_output():
            print("goes on")
    assert sorted(read_lines(root)) == ["goes on", "of the child", "of the rank"]


def test_what_a_rank_writes_and_notes_is_there_when_it_has_flushed(root, log):
    log.write(f"a line of {SECRET}")
    log.note(f"a note of {SECRET}", attempt=2)
    log.flush()
    assert read_lines(root) == ["a line of ***"]
    assert [(event.kind, event.text, event.attempt) for event in read_events(root, 1)] == [("note", "a note of ***", 2)]


def test_the_last_lines_of_a_rank_come_from_each_node_that_it_was_on(root):
    for node_rank, rank, start in ((1, 1, 0), (0, 1, 100), (0, 11, 200)):
        writer = LogWriter(root, 1, node_rank, rank)
        for number in range(start, start + 10):
            writer.write(f"line {number}", time_unix_ms=number)
        writer.flush()
    assert read_last_lines(root, 1, 1, 12) == ["line 8", "line 9", *(f"line {number}" for number in range(100, 110))]
    assert read_last_lines(root, 1, 2, 12) == []
