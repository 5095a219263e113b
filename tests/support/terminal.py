"""A real pseudo-terminal of 80 columns and 24 lines."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence

COLUMNS, LINES = 80, 24
_STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def without_styles(text: str) -> str:
    """The text without colours and other sequences of the terminal, with plain ends of lines."""
    return _STYLE.sub("", text).replace("\r\n", "\n")


class Terminal:
    """A program in a terminal of its own.

    Args:
        fd: the terminal's other end.
    """

    def __init__(self, process: subprocess.Popen[bytes], fd: int) -> None:
        self.process = process
        self._fd = fd
        # A letter of several bytes may come in two parts.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.output = ""

    def type(self, text: str) -> None:
        """Type on the keyboard."""
        os.write(self._fd, text.encode())

    def read_until(self, *texts: str, timeout_s: float = 60.0) -> str:
        """What has come since the program began, once all these texts are in it; without texts, once it has ended."""
        deadline_s = time.monotonic() + timeout_s
        while not texts or not all(text in self.output for text in texts):
            assert time.monotonic() < deadline_s, f"{texts} did not come: {self.output}"
            if select.select([self._fd], [], [], 0.1)[0]:
                try:
                    new = os.read(self._fd, 1 << 16)
                except OSError:  # The program has ended.
                    new = b""
                if not new:
                    assert not texts, f"{texts} did not come: {self.output}"
                    return self.output
                self.output += without_styles(self._decoder.decode(new))
        return self.output


@contextlib.contextmanager
def open_terminal(argv: Sequence[str], env: Mapping[str, str]) -> Iterator[Terminal]:
    """Run a program in a terminal of 80 columns; it is ended at the end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    variables = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        argv,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**variables, "TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)
