"""A process that has torch imported before the next torchrun of a node needs it.

Torchrun imports torch only to start its ranks, which import it again: nearly all of its start, and of a restart. So
while the ranks of an attempt train, a warm process is made ready for the torchrun of the next one, in the same
environment. Nothing else than that start changes: the ranks are processes of their own, and a torchrun that finds no
warm process that fits goes on by itself.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from periflow_ray.processes import Command
from periflow_ray.processes.keeper import describe_process, end_descendants
from periflow_ray.sdk.shim import periflow_launcher as launcher

VARIABLE = launcher.VARIABLE
# By it, what a killed member left behind is known; a sandbox's own processes end with every attempt.
MARKER = "PERIFLOW_WARM_LAUNCHER"
# What differs from one attempt to the next, and what a shell keeps for itself; torch's import reads none of it.
_PASSING = frozenset({"MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "NUM_NODES", "PROCESSED_ITERS"}) | {
    "SHLVL",
    "PWD",
    "OLDPWD",
    "_",
}
_OWN_PREFIX = "PERIFLOW_"
# Of one that began before a `pip install` other packages are imported.
_SAME = ("executable", "prefix", "installed_ns")


class WarmLauncher:
    """Keeps one warm process for a node; one at a time runs in it.

    Args:
        socket_path: where the node's torchruns ask for it.
        marker: value of ``MARKER`` in its environment.
        on_line: takes what it prints.
    """

    def __init__(self, socket_path: Path, marker: str, on_line: Callable[[str], None]) -> None:
        self.socket_path = socket_path
        self._marker = marker
        self._on_line = on_line
        self._lock = threading.Lock()
        self._wanted: dict[str, Any] | None = None
        self._command: Command | None = None
        self._made_for: dict[str, Any] | None = None
        self._line: socket.socket | None = None
        self._pid: int | None = None
        socket_path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(socket_path))
        self._listener.listen(16)

    def start(self) -> WarmLauncher:
        """Begin to answer; returns itself."""
        threading.Thread(target=self._accept, name="warm-launcher", daemon=True).start()
        return self

    def warm_up(self) -> None:
        """Get ready for a torchrun like the last one; nothing happens if none was there, or it is done already."""
        with self._lock:
            self._notice_death()
            if self._wanted is None or (self._made_for is not None and _is_alike(self._wanted, self._made_for)):
                return
            self._end_warm()
            wanted = self._made_for = self._wanted
            environ = {name: value for name, value in wanted["environ"].items() if name != "PERIFLOW_SANDBOX"}
            with contextlib.suppress(OSError):
                self._command = Command(
                    [wanted["executable"], launcher.__file__, str(self.socket_path)],
                    env={**environ, MARKER: self._marker},
                    working_dir=self.socket_path.parent,
                    grace_s=0.0,
                    on_line=self._on_line,
                ).start()

    def end_runs(self) -> list[str]:
        """See to it that nothing runs in it any more; describes what cannot be ended."""
        with self._lock:
            if self._command is None or self._pid is None:
                return []
            # Below its keeper, because that one inherits the ranks of a torchrun that was killed.
            left = end_descendants(self._command.keeper_pid, 0.0, spared={self._pid})
            return [describe_process(pid) for pid in left]

    def close(self) -> None:
        """End it, and whatever runs in it."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.socket_path.unlink(missing_ok=True)
        with self._lock:
            self._end_warm()

    def _end_warm(self) -> None:
        if self._line is not None:
            self._line.close()
        if self._command is not None:
            self._command.stop(0.0)
            self._command.wait()
        self._line, self._pid, self._command, self._made_for = None, None, None, None

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(line,), name="warm-launcher-ask", daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        try:
            document, fds = launcher.receive(line)
        except (OSError, ValueError):
            line.close()
            return
        if "warm" in document:
            with self._lock:
                self._line, self._pid = line, document["warm"]
            return
        try:
            # Whoever asked and is not answered goes on by itself.
            with line, contextlib.suppress(OSError):
                if not self._hand_over(document, [*fds, line.fileno()]):
                    launcher.send(line, {"taken": False})
        finally:
            for fd in fds:
                os.close(fd)

    def _hand_over(self, task: dict[str, Any], fds: list[int]) -> bool:
        with self._lock:
            self._notice_death()
            if self._line is not None and self._made_for is not None and _is_alike(task, self._made_for):
                launcher.send(self._line, task, fds)
                return True
            self._wanted = {name: task[name] for name in (*_SAME, "environ")}
            return False

    def _notice_death(self) -> None:
        """Another one is made then, when it is time."""
        if self._line is None:
            return
        try:
            # It says nothing any more: whatever comes is the end.
            self._line.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            pass
        self._made_for = None


def _is_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if any(one[name] != other[name] for name in _SAME):
        return False
    return _lasting(one["environ"]) == _lasting(other["environ"])


def _lasting(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in _PASSING and not name.startswith(_OWN_PREFIX)}
