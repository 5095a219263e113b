"""Runs a command under a keeper and hands over its output line by line."""

from __future__ import annotations

import codecs
import io
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from periflow_ray.loops import Faults
from periflow_ray.processes import keeper
from periflow_ray.processes.output_lines import OutputLines
from periflow_ray.secret_mask import SecretMask

_READ_BYTES = 64 << 10
# A command's processes are known by it when the keeper, their common ancestor, is gone.
_MARKER_VARIABLE = "PERIFLOW_COMMAND_ID"


@dataclass(frozen=True)
class CommandResult:
    """How a command ended. ``exit_code`` is None when a signal ended it; both are None if the keeper was killed."""

    exit_code: int | None
    signal: int | None
    peak_memory_bytes: int

    @property
    def is_success(self) -> bool:
        """Exit code 0."""
        return self.exit_code == 0


class Command:
    """A command, from ``start`` on, whose descendants all end with it, with ``stop``, or with this process.

    Args:
        argv: program and arguments.
        env: the whole environment.
        working_dir: where it starts.
        grace_s: seconds between SIGTERM and SIGKILL when it has to end.
        on_line: called from a reader thread with each line of its output (standard output and error together).
        mask: whose secrets no piece of a very long line is cut through.
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
    ) -> None:
        self._argv = argv
        self._env = env
        self._working_dir = working_dir
        self._grace_s = grace_s
        self._on_line = on_line
        self._mask = mask
        self._marker = (_MARKER_VARIABLE, uuid.uuid4().hex)
        self._faults = Faults("taking in a command's output")

    def start(self) -> Command:
        """Start it; returns itself. Nothing else may be called before."""
        result_read, result_write = os.pipe()
        self._result_pipe = os.fdopen(result_read, "rb")
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", keeper.__file__, str(result_write), str(self._grace_s), *self._argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**self._env, self._marker[0]: self._marker[1]},
            cwd=self._working_dir,
            pass_fds=(result_write,),
            start_new_session=True,
        )
        os.close(result_write)
        self._reader = threading.Thread(target=self._read_output, name="command-output", daemon=True)
        self._reader.start()
        return self

    @property
    def keeper_pid(self) -> int:
        """Process id of the keeper."""
        return self._keeper.pid

    def wait(self) -> CommandResult:
        """Wait until the command and all of its descendants have ended and their output was read."""
        document = self._result_pipe.readline()
        self._keeper.wait()
        if not document:
            # The keeper was killed: what it kept may still run, and holds the output open.
            end_leftovers(self._marker)
        self._reader.join()
        if not document:
            return CommandResult(exit_code=None, signal=None, peak_memory_bytes=0)
        return CommandResult(**json.loads(document))

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


def end_leftovers(marker: tuple[str, str], grace_s: float = 0.0) -> list[int]:
    """End every process of this machine whose environment has ``marker`` (name, value); their ids.

    For what a killed keeper and a killed member left behind together.
    """
    wanted = f"{marker[0]}={marker[1]}".encode()
    ended: list[int] = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0"):
            keeper.end_descendants(int(entry), grace_s)
            keeper.end_process(int(entry))
            ended.append(int(entry))
    return ended
