"""A rank's log as the rank itself has it: all that it prints goes to the log's keeper, a process beside it.

The file descriptors are taken, and not Python's objects alone: child processes, libraries in C and ``os.write`` know
nothing of ``sys.stdout``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol, TextIO

from periflow_ray.processes import beside
from periflow_ray.runtime.function_jobs import log_keeper
from periflow_ray.runtime.function_jobs.log_keeper import PIPE_BYTES, Channels, LogKeeper, LogTask, Process
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.secret_mask import SecretMask

# How long a rank waits until its lines are visible; they are on their way all the same.
ANSWER_TIMEOUT_S = 30.0
# A keeper ends by itself soon after its last answer.
_EXIT_TIMEOUT_S = 2.0
# Somebody may kill it. One that dies again and again is replaced by a thread.
NUM_KEEPERS = 3
_F_SETPIPE_SZ = getattr(fcntl, "F_SETPIPE_SZ", None)


class Keeper(Protocol):
    """What keeps a log."""

    def start(self, channels: Channels) -> None:
        """Begin; ``channels.answers`` is closed with its end, whatever ends it.

        Raises:
            OSError: it does not start.
        """

    def join(self, timeout_s: float) -> None:
        """Wait for the end of one that was asked to end."""


class ProcessKeeper:
    """Keeps a log in a process that outlives this one."""

    def __init__(self, task: LogTask) -> None:
        self._task = task
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, channels: Channels) -> None:
        title = f"the log of rank {self._task.rank} of job {self._task.job_id}"
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", beside.__file__, title],
                stdin=subprocess.PIPE,
                stdout=channels.originals[0],
                stderr=channels.originals[1],
                pass_fds=(*channels.outputs, channels.words, channels.answers),
                start_new_session=True,
            )
        finally:
            os.close(channels.answers)
        self._process = process
        module, function = log_keeper.__name__, log_keeper.main.__name__
        head = json.dumps({"path": sys.path, "module": module, "function": function}).encode()
        there = dataclasses.replace(channels, originals=(1, 2))
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:  # Its death is known by its answers.
            stdin.write(head + b"\n" + pickle.dumps((self._task, there, Process.of(os.getpid()))))

    def join(self, timeout_s: float) -> None:
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)


class ThreadKeeper:
    """Keeps a log in a thread of this process, with which it ends.

    Args:
        log: open for as long as this one runs.
    """

    def __init__(self, log: MemberLog) -> None:
        self._log = log
        self._thread: threading.Thread | None = None

    def start(self, channels: Channels) -> None:
        keeper = LogKeeper(self._log, channels)

        def keep() -> None:
            with self._log:
                keeper.read()
                keeper.settle()

        self._thread = threading.Thread(target=keep, name="log-keeper", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        if self._thread is not None:
            self._thread.join(timeout_s)


class RankLog:
    """Whatever the rank prints, writes and notes while it is open is in its log soon, however the rank ends.

    A keeper that dies is followed by the next one, which goes on with the same pipes.

    Args:
        mask: hides the log's secrets.
        keepers: one after the other; the last one does not die.
    """

    def __init__(self, mask: SecretMask, keepers: Sequence[Keeper]) -> None:
        self.mask = mask
        self._keepers = list(keepers)
        self._pid = os.getpid()
        self._is_ending = False
        # Numbers of requests, and whom to tell that they are done.
        self._requests: dict[int, threading.Event] = {}
        self._num_requests = 0
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._follow, name="log-answers", daemon=True)

    @classmethod
    def of(cls, task: LogTask) -> RankLog:
        """The log of this process."""
        log = task.open_log()
        return cls(log.mask, [*(ProcessKeeper(task) for _ in range(NUM_KEEPERS)), ThreadKeeper(log)])

    def __enter__(self) -> RankLog:
        self._stack = contextlib.ExitStack()
        self._originals = self._own(os.dup(1), os.dup(2))
        # Both ends stay open here: whoever prints must not be told that nobody reads, when a keeper has died.
        (out_read, self._out), (err_read, self._err), (words_read, self._words) = (self._make_pipe() for _ in range(3))
        self._read_ends = (out_read, err_read, words_read)
        self._answers = self._start_keeper()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_ending = True
        self._ask("end")
        self._thread.join(_EXIT_TIMEOUT_S)
        if not self._thread.is_alive():
            self._keepers[0].join(_EXIT_TIMEOUT_S)
        with self._writing:
            self._is_closed = True
        self._stack.close()

    def write(self, text: str) -> None:
        """Add a line that nobody prints."""
        self._say("line", text)

    def note(self, text: str, attempt: int = 0) -> None:
        """A sentence that the user should read, as an event of the job."""
        self._say("note", text, attempt)

    def flush(self) -> None:
        """Make everything printed and written so far visible to readers, as far as the storage takes it in time."""
        self._ask("flush")

    @contextlib.contextmanager
    def copy_output(self) -> Iterator[None]:
        """Give each line that this process and its children print to the log while the block runs, to the last one.

        Ray gets the same lines, without the log's secrets. ``sys.__stderr__`` goes to Ray alone.
        """
        former = sys.stdout, sys.stderr, sys.__stderr__
        for stream in former[:2]:
            stream.flush()
        with open(os.dup(self._originals[1]), "w", buffering=1, encoding="utf-8") as own:
            os.dup2(self._out, 1)
            os.dup2(self._err, 2)
            taken = _open_text(1), _open_text(2)
            sys.stdout, sys.stderr, sys.__stderr__ = *taken, own  # type: ignore[misc]
            try:
                yield
            finally:
                for stream in taken:
                    with contextlib.suppress(ValueError):  # The function has closed it.
                        stream.flush()
                sys.stdout, sys.stderr, sys.__stderr__ = former  # type: ignore[misc]
                for original, fd in zip(self._originals, (1, 2), strict=True):
                    os.dup2(original, fd)
                self._say("finish")

    def _make_pipe(self) -> tuple[int, int]:
        read_fd, write_fd = self._own(*os.pipe())
        if _F_SETPIPE_SZ is not None:
            with contextlib.suppress(OSError):  # This user has many pipes.
                fcntl.fcntl(write_fd, _F_SETPIPE_SZ, PIPE_BYTES)
        return read_fd, write_fd

    def _own(self, first: int, second: int) -> tuple[int, int]:
        self._stack.callback(os.close, first)
        self._stack.callback(os.close, second)
        return first, second

    def _start_keeper(self) -> int:
        """Start the first keeper that starts; returns where its answers come out."""
        out_read, err_read, words_read = self._read_ends
        while True:
            answers, its_answers = os.pipe()
            try:
                self._keepers[0].start(Channels((out_read, err_read), self._originals, words_read, its_answers))
            except OSError as err:
                os.close(answers)
                if len(self._keepers) == 1:
                    raise
                print(f"the keeper of this rank's log does not start: {err}", file=sys.__stderr__)
                self._keepers.pop(0)
            else:
                return answers

    def _follow(self) -> None:
        while True:
            with open(self._answers, "rb") as answers:
                for line in answers:
                    self._settle([int(line)])
            if self._is_ending:
                self._settle(list(self._requests))
                return
            # Nobody answers what this one was asked.
            self._settle(list(self._requests))
            self._say("line", "[the process that keeps this log was killed: lines may be missing here]")
            if len(self._keepers) > 1:
                self._keepers.pop(0).join(_EXIT_TIMEOUT_S)
            self._answers = self._start_keeper()

    def _settle(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            with self._lock:
                done = self._requests.pop(number, None)
            if done is not None:
                done.set()

    def _ask(self, kind: str) -> None:
        """Ask for something and wait until it is done."""
        done = threading.Event()
        with self._lock:
            self._num_requests += 1
            number = self._num_requests
            self._requests[number] = done
        if self._say(kind, number):
            done.wait(ANSWER_TIMEOUT_S)

    def _say(self, kind: str, *values: object) -> bool:
        """Whether there is somebody to answer."""
        if os.getpid() != self._pid:
            # A fork of the rank that leaves the function's call: the log is the rank's, and goes on.
            return False
        content = json.dumps([kind, *values]).encode() + b"\n"
        with self._writing:
            # Threads of the member may outlive it, and have nothing to say any more.
            while content and not self._is_closed:
                content = content[os.write(self._words, content) :]
            return not self._is_closed


def _open_text(fd: int) -> TextIO:
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
