"""Copies what a function job's worker prints into the job's log, beside Ray's own handling of it.

The file descriptors are taken, and not Python's objects alone: child processes, libraries in C and ``os.write`` know
nothing of ``sys.stdout``.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import selectors
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

from periflow_ray.loops import Faults
from periflow_ray.processes import OutputLines
from periflow_ray.runtime.member.log import MemberLog

# The largest that Linux gives to any user. C code that prints without giving up Python's lock waits for room.
PIPE_BYTES = 1 << 20
_READ_BYTES = 64 << 10
_F_SETPIPE_SZ = getattr(fcntl, "F_SETPIPE_SZ", None)


@contextlib.contextmanager
def copy_output(log: MemberLog) -> Iterator[None]:
    """Give each line that this process and its children print to the log while the block runs, to the last one.

    Ray gets the same lines, without the log's secrets. ``sys.__stderr__`` goes to Ray alone.
    """
    former = sys.stdout, sys.stderr, sys.__stderr__
    with contextlib.ExitStack() as stack:
        for stream in former[:2]:
            stream.flush()
        streams = [stack.enter_context(_Stream(fd, log)) for fd in (1, 2)]
        stack.enter_context(_Reader(streams))
        own = stack.enter_context(open(os.dup(streams[1].original_fd), "w", buffering=1, encoding="utf-8"))
        sys.stdout, sys.stderr = _open_text(1), _open_text(2)
        sys.__stderr__ = own  # type: ignore[misc]
        taken = sys.stdout, sys.stderr
        try:
            yield
        finally:
            for stream in taken:
                with contextlib.suppress(ValueError):  # The function has closed it.
                    stream.flush()
            sys.stdout, sys.stderr = former[:2]
            sys.__stderr__ = former[2]  # type: ignore[misc]
            for redirected in streams:
                redirected.give_back()


def _open_text(fd: int) -> TextIO:
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


class _Stream:
    """One of the process's two outputs, which leads into a pipe while this is open."""

    def __init__(self, fd: int, log: MemberLog) -> None:
        self._fd = fd
        self._log = log
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._lines = OutputLines(self._take_line, log.mask)
        self.original_fd = os.dup(fd)
        self.read_fd, write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        if _F_SETPIPE_SZ is not None:
            with contextlib.suppress(OSError):  # This user has many pipes.
                fcntl.fcntl(write_fd, _F_SETPIPE_SZ, PIPE_BYTES)
        os.dup2(write_fd, fd)
        os.close(write_fd)

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.give_back()
        os.close(self.read_fd)
        os.close(self.original_fd)

    def give_back(self) -> None:
        """Let the output lead where it did; a child that still runs keeps the pipe."""
        os.dup2(self.original_fd, self._fd)

    def read(self, *, is_last: bool) -> bool:
        """Take what was printed; False where nobody can print any more, and at the last where nothing is there."""
        try:
            content = os.read(self.read_fd, _READ_BYTES)
        except BlockingIOError:
            return not is_last
        self._lines.feed(self._decoder.decode(content))
        return bool(content)

    def finish(self) -> None:
        """Take the last line, even without a line end."""
        self._lines.feed(self._decoder.decode(b"", final=True))
        self._lines.finish()

    def _take_line(self, line: str) -> None:
        content = f"{self._log.write(line)}\n".encode(errors="backslashreplace")
        with contextlib.suppress(OSError):  # Ray's disk is full: the job's log has it.
            while content:
                content = content[os.write(self.original_fd, content) :]


class _Reader:
    """Takes what comes out of the pipes in a thread, until the outputs were given back and the pipes are empty."""

    def __init__(self, streams: list[_Stream]) -> None:
        self._streams = streams
        self._faults = Faults("copying the output into the job's log")
        self._ending_fd, self._end_fd = os.pipe()
        self._thread = threading.Thread(target=self._read, name="output", daemon=True)

    def __enter__(self) -> _Reader:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._end_fd)
        self._thread.join()
        os.close(self._ending_fd)

    def _read(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._ending_fd, selectors.EVENT_READ)
            for stream in self._streams:
                selector.register(stream.read_fd, selectors.EVENT_READ, stream)
            is_ending = False
            while not is_ending:
                for key, _ in selector.select():
                    if key.data is None:
                        is_ending = True
                    elif not self._take(key.data):
                        # Nobody prints into it any more.
                        selector.unregister(key.fileobj)
        for stream in self._streams:
            while self._take(stream, is_last=True):
                pass
            stream.finish()

    def _take(self, stream: _Stream, *, is_last: bool = False) -> bool:
        """Take what was printed; False where there is an end of it. No fault of the log may stop the rank."""
        try:
            return stream.read(is_last=is_last)
        except Exception as err:
            self._faults.take(err)
            return not is_last
