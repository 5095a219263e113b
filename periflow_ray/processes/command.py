"""Runs a command under a keeper and hands over its output line by line."""

from __future__ import annotations

import codecs
import io
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from periflow_ray.loops import Faults
from periflow_ray.processes import keeper
from periflow_ray.processes.output_lines import OutputLines
from periflow_ray.secret_mask import SecretMask

_READ_BYTES = 64 << 10
# A command's processes are known by it when the keeper, their common ancestor, is gone.
_MARKER_VARIABLE = "PERIFLOW_COMMAND_ID"
# How long the last output is waited for where a process that cannot be ended may hold it open.
_LAST_OUTPUT_TIMEOUT_S = 2.0
_POLL_S = 0.05


@dataclass(frozen=True)
class CommandResult:
    """How a command ended. ``exit_code`` is None when a signal ended it; both are None if the keeper was killed.

    ``left`` describes processes of it that could not be ended, and are left behind: ``1234 (sudo sleep 1000)``.
    """

    exit_code: int | None
    signal: int | None
    peak_memory_bytes: int
    left: tuple[str, ...] = ()

    @property
    def is_success(self) -> bool:
        """Exit code 0."""
        return self.exit_code == 0


@dataclass(frozen=True)
class Leftover:
    """A process that an earlier command left behind, and whether it is there even now because it cannot be ended."""

    description: str
    is_left: bool


class Command:
    """A command, from ``start`` on, whose descendants all end with it, with ``stop``, or with this process.

    Args:
        argv: program and arguments.
        env: the whole environment.
        working_dir: where it starts.
        grace_s: seconds between SIGTERM and SIGKILL when it has to end.
        on_line: called from a reader thread with each line of its output (standard output and error together).
        mask: whose secrets no piece of a very long line is cut through.
        finish: where the command is only the client of what runs elsewhere, such as a container: a program that ends
            that one, and is run whenever the command has ended or has to.
    """

    def __init__(
        self,
        argv: list[str],
        *,
        env: Mapping[str, str],
        working_dir: Path,
        grace_s: float,
        on_line: Callable[[str], None],
        mask: SecretMask | None = None,
        finish: Sequence[str] = (),
    ) -> None:
        self._argv = argv
        self._env = env
        self._working_dir = working_dir
        self._grace_s = grace_s
        self._on_line = on_line
        self._mask = mask
        self._finish = list(finish)
        self._marker = (_MARKER_VARIABLE, uuid.uuid4().hex)
        self._faults = Faults("taking in a command's output")
        self._waiting = threading.Lock()
        self._result: CommandResult | None = None

    def start(self) -> Command:
        """Start it; returns itself. Nothing else may be called before."""
        result_read, result_write = os.pipe()
        self._result_pipe = os.fdopen(result_read, "rb")
        try:
            self._keeper = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    keeper.__file__,
                    str(result_write),
                    str(self._grace_s),
                    json.dumps(self._finish),
                    *self._argv,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**self._env, self._marker[0]: self._marker[1]},
                cwd=self._working_dir,
                pass_fds=(result_write,),
                start_new_session=True,
            )
        finally:
            os.close(result_write)
        self._reader = threading.Thread(target=self._read_output, name="command-output", daemon=True)
        self._reader.start()
        return self

    @property
    def keeper_pid(self) -> int:
        """Process id of the keeper."""
        return self._keeper.pid

    def wait(self) -> CommandResult:
        """Wait until the command and all of its descendants have ended and their output was read.

        What cannot be ended is not waited for, but is in the result.
        """
        with self._waiting:
            if self._result is None:
                self._result = self._wait()
            return self._result

    def _wait(self) -> CommandResult:
        document = self._result_pipe.readline()
        self._keeper.wait()
        if not document:
            # The keeper was killed: what it kept may still run, and holds the output open.
            if self._finish:
                keeper.run_finish(self._finish)
            leftovers = end_leftovers(self._marker)
            self._reader.join(_LAST_OUTPUT_TIMEOUT_S)
            left = tuple(leftover.description for leftover in leftovers if leftover.is_left)
            return CommandResult(exit_code=None, signal=None, peak_memory_bytes=0, left=left)
        fields = json.loads(document)
        result = CommandResult(**{**fields, "left": tuple(fields["left"])})
        # The reader ends with the last process that may write.
        self._reader.join(_LAST_OUTPUT_TIMEOUT_S if result.left else None)
        return result

    def stop(self, grace_s: float | None = None) -> None:
        """Ask for the end: SIGTERM to all descendants, SIGKILL after the grace time. ``wait`` returns then.

        Args:
            grace_s: instead of the command's own; a second call changes nothing.
        """
        assert self._keeper.stdin is not None
        try:
            self._keeper.stdin.write(b"terminate\n" if grace_s is None else f"terminate {grace_s}\n".encode())
            self._keeper.stdin.flush()
        except (BrokenPipeError, ValueError):  # The keeper is gone: there is nothing to stop.
            return

    def _read_output(self) -> None:
        assert isinstance(self._keeper.stdout, io.BufferedReader)
        lines = OutputLines(self._take_line, self._mask)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while content := self._keeper.stdout.read1(_READ_BYTES):
            lines.feed(decoder.decode(content))
        lines.feed(decoder.decode(b"", final=True))
        lines.finish()

    def _take_line(self, text: str) -> None:
        try:
            self._on_line(text)
        except Exception as err:  # Nobody would read on, and the command would stand still at a full pipe.
            self._faults.take(err)


def end_leftovers(marker: tuple[str, str]) -> list[Leftover]:
    """End every process of this machine whose environment has ``marker`` (name, value), and all below it.

    For what a killed keeper and a killed member left behind together.

    Returns:
        All that were found; those that cannot be ended are not waited for without end.
    """
    descriptions: dict[int, str] = {}
    deadline_s = time.monotonic() + keeper.KILL_TIMEOUT_S
    while remaining := _find_marked(marker):
        for pid in remaining:
            if pid not in descriptions:
                descriptions[pid] = keeper.describe_process(pid)
            keeper.end_process(pid)
        if time.monotonic() >= deadline_s:
            break
        time.sleep(_POLL_S)
    return [Leftover(description, pid in remaining) for pid, description in descriptions.items()]


def _find_marked(marker: tuple[str, str]) -> set[int]:
    wanted = f"{marker[0]}={marker[1]}".encode()
    found: set[int] = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            # Empty for one that has ended and was not waited for yet.
            environment = Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0"):
            found |= {int(entry), *keeper.find_descendants(int(entry))}
    return found
