"""Runs commands in a directory of their own and finds their processes by a mark in the environment."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from periflow_ray.processes import Command
from periflow_ray.secret_mask import SecretMask


class Marked:
    """Processes whose environment carries this test's mark, whoever their parent is."""

    def __init__(self) -> None:
        self.marker = ("PERIFLOW_TEST_MARK", uuid.uuid4().hex)

    def find(self) -> list[int]:
        """Ids of the living ones."""
        wanted = "=".join(self.marker).encode()
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                # A process that has ended but was not waited for has an empty environment.
                environment = Path(f"/proc/{entry}/environ").read_bytes()
            except OSError:
                continue
            if wanted in environment.split(b"\0"):
                found.append(int(entry))
        return found


@pytest.fixture
def marked() -> Iterator[Marked]:
    processes = Marked()
    yield processes
    left = processes.find()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"processes {left} outlive the test"


@pytest.fixture
def start(tmp_path: Path, marked: Marked) -> Callable[..., tuple[Command, list[str]]]:
    """Starts a bash command: ``command, lines = start("echo hello")``."""

    def start(script: str, *, grace_s: float = 30.0, mask: SecretMask | None = None) -> tuple[Command, list[str]]:
        lines: list[str] = []
        command = Command(
            ["bash", "-c", script],
            env={**os.environ, marked.marker[0]: marked.marker[1]},
            working_dir=tmp_path,
            grace_s=grace_s,
            on_line=lines.append,
            mask=mask,
        ).start()
        return command, lines

    return start
