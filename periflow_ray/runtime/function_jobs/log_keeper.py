"""The keeper of a rank's log: reads what the rank and its children print, and writes it down, even when they are dead.

It runs in a process of its own beside the rank, which may end at any moment: by a signal, by ``os._exit``, by Ray. What
was printed by then is in the pipes, and the keeper is the one who has them.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import pickle
import selectors
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from periflow_ray.jobs.events import EventWriter
from periflow_ray.jobs.logs import LogWriter
from periflow_ray.loops import Faults
from periflow_ray.processes import OutputLines
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.store.root import StorageRoot

# The largest that Linux gives to any user: what may be printed while the keeper starts, or does not get to run.
PIPE_BYTES = 1 << 20
# How long children of a dead rank may still print: they hold the pipes open.
LAST_OUTPUT_S = 3.0
# How long the storage may take for the last lines.
LAST_FLUSH_S = 30.0
LOOK_INTERVAL_S = 1.0
_READ_BYTES = 64 << 10


@dataclass(frozen=True)
class Channels:
    """File descriptors between a rank and the keeper of its log.

    Args:
        outputs: what the rank prints comes out of these: standard output and error.
        originals: where it goes besides, without the log's secrets; to Ray.
        words: the rank's requests, a JSON list in each line: ``["line", text]``, ``["note", text, attempt]``, and
            ``["finish"]`` for a last line that has no line end; ``["flush", n]`` and ``["end", n]`` are answered.
        answers: takes the number of each request that is done, in a line; closed when the keeper needs nothing more.
    """

    outputs: tuple[int, int]
    originals: tuple[int, int]
    words: int
    answers: int


@dataclass(frozen=True)
class LogTask:
    """Whose log is kept, where, and with which secrets left out."""

    root: StorageRoot
    job_id: int
    node_rank: int
    rank: int
    secrets: tuple[str, ...] = field(repr=False)

    def open_log(self) -> MemberLog:
        """The log; the storage is not asked yet."""
        return MemberLog(
            LogWriter(self.root, self.job_id, self.node_rank, self.rank),
            f"rank {self.rank}",
            is_local=self.root.is_local,
            secrets=self.secrets,
            events=EventWriter(self.root, self.job_id, f"rank-{self.rank}"),
        )


@dataclass(frozen=True)
class Process:
    """A process of this machine, and no later one with its number."""

    pid: int
    started: bytes

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this number now."""
        return cls(pid, _read_start(pid))

    def is_running(self) -> bool:
        """Whether it has not ended; one that has ended and that nobody waited for is not running."""
        return bool(self.started) and _read_start(self.pid) == self.started


def main() -> None:
    """Keep a log until the rank asks for the end, or is dead and has printed everything."""
    task, channels, rank = pickle.load(sys.stdin.buffer)
    with task.open_log() as log:
        keeper = LogKeeper(log, channels, rank)
        keeper.read()
        # A storage that hangs holds nobody for ever.
        threading.Timer(LAST_FLUSH_S, os._exit, [1]).start()
        keeper.settle()
        while not log.flush():
            time.sleep(LOOK_INTERVAL_S)
    os._exit(0)


class LogKeeper:
    """Takes what comes out of the pipes, line by line, and does what the rank asks for.

    Args:
        rank: the process whose end is the end of the log; None where this is that process.
    """

    def __init__(self, log: MemberLog, channels: Channels, rank: Process | None = None) -> None:
        self._log = log
        self._channels = channels
        self._rank = rank
        self._faults = Faults("keeping the log", write_trace=lambda text: print(text, file=sys.__stderr__))
        self._streams = [
            _Stream(log, output, original)
            for output, original in zip(channels.outputs, channels.originals, strict=True)
        ]
        self._answers = open(channels.answers, "wb", buffering=0)  # noqa: SIM115
        self._half_word = b""
        self._end_request: int | None = None

    def read(self) -> None:
        """Read until the rank asks for the end, nobody can print any more, or the rank is long dead."""
        for fd in (*self._channels.outputs, self._channels.words):
            os.set_blocking(fd, False)
        with selectors.DefaultSelector() as selector:
            for stream in self._streams:
                selector.register(stream.fd, selectors.EVENT_READ, stream.read)
            selector.register(self._channels.words, selectors.EVENT_READ, self._take_words)
            num_open, looked_s = len(self._streams), time.monotonic()
            dead_since_s: float | None = None
            while num_open and self._end_request is None:
                for key, _ in selector.select(LOOK_INTERVAL_S):
                    if not self._try(key.data):
                        selector.unregister(key.fileobj)
                        num_open -= key.data != self._take_words
                now_s = time.monotonic()
                if self._rank is None or now_s < looked_s + LOOK_INTERVAL_S:
                    continue
                looked_s = now_s
                if dead_since_s is None and not self._rank.is_running():
                    dead_since_s = now_s
                if dead_since_s is not None and now_s > dead_since_s + LAST_OUTPUT_S:
                    break
        self._try(self._take_words)
        self._finish_lines()

    def settle(self) -> None:
        """Make visible what was read, as far as the storage takes it, and let the rank go."""
        self._log.flush()
        if self._end_request is not None:
            self._answer(self._end_request)
        self._answers.close()

    def _take_words(self) -> bool:
        try:
            # All that the pipe holds: there may be no second time.
            content = os.read(self._channels.words, PIPE_BYTES)
        except BlockingIOError:
            return True
        *words, self._half_word = (self._half_word + content).split(b"\n")
        for word in words:
            # Half a word at the beginning: a keeper that died had the other half.
            with contextlib.suppress(ValueError, TypeError):
                self._take_word(*json.loads(word))
        return bool(content)

    def _take_word(self, kind: str, *values: object) -> None:
        match kind, values:
            case "line", [str(text)]:
                self._log.write(text)
            case "note", [str(text), int(attempt)]:
                self._log.note(text, attempt)
            case "flush", [int(number)]:
                self._drain()
                # Elsewhere, because a storage that hangs must not keep the rank from printing.
                threading.Thread(target=self._flush, args=(number,), name="flush", daemon=True).start()
            case "finish", []:
                self._finish_lines()
            case "end", [int(number)]:
                self._end_request = number

    def _flush(self, number: int) -> None:
        self._log.flush()
        self._answer(number)

    def _finish_lines(self) -> None:
        """Take what was printed until now; a last line needs no line end."""
        self._drain()
        for stream in self._streams:
            stream.finish()

    def _drain(self) -> None:
        for stream in self._streams:
            self._try(stream.drain)

    def _answer(self, number: int) -> None:
        with contextlib.suppress(OSError, ValueError):  # The rank has died meanwhile, or was let go.
            self._answers.write(f"{number}\n".encode())

    def _try(self, action: Callable[[], bool]) -> bool:
        """Whether there may be more to read. No fault of the log may stop the rank, which waits at a full pipe."""
        try:
            return action()
        except Exception as err:
            self._faults.take(err)
            return True


class _Stream:
    """One of the rank's two outputs."""

    def __init__(self, log: MemberLog, fd: int, original_fd: int) -> None:
        self.fd = fd
        self._log = log
        self._original_fd = original_fd
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._lines = OutputLines(self._take_line, log.mask)

    def read(self) -> bool:
        """Take some of what was printed; False where nobody can print any more."""
        with contextlib.suppress(BlockingIOError):
            return bool(self._take(_READ_BYTES))
        return True

    def drain(self) -> bool:
        """Take all that was printed until now, and not what somebody prints without end; False as ``read``."""
        num_left = PIPE_BYTES
        with contextlib.suppress(BlockingIOError):
            while num_left > 0:
                if not (num_taken := self._take(num_left)):
                    return False
                num_left -= num_taken
        return True

    def finish(self) -> None:
        """Take the last line, even without a line end."""
        self._lines.feed(self._decoder.decode(b"", final=True))
        self._lines.finish()

    def _take(self, max_bytes: int) -> int:
        content = os.read(self.fd, max_bytes)
        self._lines.feed(self._decoder.decode(content))
        return len(content)

    def _take_line(self, line: str) -> None:
        content = f"{self._log.write(line)}\n".encode(errors="backslashreplace")
        with contextlib.suppress(OSError):  # Ray's disk is full: the job's log has it.
            while content:
                content = content[os.write(self._original_fd, content) :]


def _read_start(pid: int) -> bytes:
    """When a process started, in the kernel's words; empty if it has ended."""
    try:
        # The command name may contain spaces and parentheses; the fields follow the last ')'. See proc(5).
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return b""
    return b"" if fields[0] in (b"Z", b"X") else fields[19]
