"""Processes to be killed: each starts in milliseconds, because it is forked from one that has imported everything.

``ShortLived`` is the side of the tests; run as a script, this file is the process that forks.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class ShortLived:
    """Runs functions of importable modules in processes that are killed; one at a time."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._parent = subprocess.Popen(
            [sys.executable, __file__, *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )

    @contextlib.contextmanager
    def running(self, function: Callable[..., object], *args: Any) -> Iterator[None]:
        """The function has begun in a process of its own; at the end of the block the process is killed.

        The function's first argument is a function of no arguments, which it calls when it begins.
        """
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        call = pickle.dumps((function.__module__, function.__name__, args))
        self._parent.stdin.write(base64.b64encode(call) + b"\n")
        self._parent.stdin.flush()
        pid = int(self._parent.stdout.readline())
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            ending = self._parent.stdout.readline().decode().strip()
        assert ending == f"signal {signal.SIGKILL:d}", f"the process ended by itself: {ending}"

    def close(self) -> None:
        """End the process that forks."""
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait()
        assert self._parent.stdout is not None
        self._parent.stdout.close()


def _fork_for_each_line(modules: list[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                module, name, args = pickle.loads(base64.b64decode(line))
                getattr(importlib.import_module(module), name)(_tell_pid, *args)
            finally:
                sys.stderr.flush()
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(1, f"signal {-status}\n".encode() if status < 0 else f"exit {status}\n".encode())


def _tell_pid() -> None:
    os.write(1, f"{os.getpid()}\n".encode())


if __name__ == "__main__":
    # Else these modules had a second name, without ``support``.
    sys.path.remove(str(Path(__file__).parent))
    _fork_for_each_line(sys.argv[1:])
