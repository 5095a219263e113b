"""What a node fetches or installs before a command starts, and how another thread ends it."""

from __future__ import annotations

import threading

from periflow_ray.processes import Command, CommandResult


class Running:
    """A command that another thread may end, with all that would come after it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._command: Command | None = None
        self._ended = threading.Event()

    @property
    def is_ended(self) -> bool:
        """Whether ``end`` was called."""
        return self._ended.is_set()

    def run(self, command: Command) -> CommandResult:
        """Run a command to its end, or to ``end``; one that is not to run is none."""
        with self._lock:
            if self.is_ended:
                return CommandResult(exit_code=None, signal=None, peak_memory_bytes=0)
            self._command = command.start()
        return command.wait()

    def pause(self, duration_s: float) -> None:
        """Wait, but not beyond ``end``."""
        self._ended.wait(duration_s)

    def end(self) -> None:
        """End it; what comes later ends at once."""
        with self._lock:
            self._ended.set()
            if self._command is not None:
                self._command.stop()
