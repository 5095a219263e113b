"""A watcher that ends without being told to is started again: the machine has no other one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.metadata_servers import FakeAws, serve_metadata

from periflow_ray.processes.keeper import find_descendants

WATCHING = "watching AWS's notices"


@pytest.fixture
def watcher(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A watcher of a metadata service on loopback, with its output in ``watcher.log``."""
    with serve_metadata(FakeAws()) as service, (tmp_path / "watcher.log").open("wb") as log:
        watcher = subprocess.Popen(
            [sys.executable, "-m", "periflow_ray.runtime.notices.watcher", "--cloud", "aws"],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "PERIFLOW_METADATA_ENDPOINT": service.endpoint,
            },
            stderr=log,
        )
        yield watcher
        watcher.kill()
        watcher.wait()


def num_lines(log: Path, text: str) -> int:
    return log.read_text().count(text)


def test_a_killed_watcher_is_started_again_and_ends_when_told_to(
    watcher: subprocess.Popen[bytes], tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    log = tmp_path / "watcher.log"
    wait_until(lambda: num_lines(log, WATCHING) == 1)
    (child,) = find_descendants(watcher.pid)
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: num_lines(log, WATCHING) == 2)
    assert num_lines(log, "it ended (exit code -9) without being told to; it is started again") == 1
    (second,) = find_descendants(watcher.pid)
    watcher.terminate()
    assert watcher.wait(30) == 0
    assert num_lines(log, "ended; 0 requests to the metadata service failed") == 1
    assert not Path(f"/proc/{second}").exists()


def test_nothing_is_left_of_a_watcher_whose_parent_is_killed(
    watcher: subprocess.Popen[bytes], tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    wait_until(lambda: num_lines(tmp_path / "watcher.log", WATCHING) == 1)
    (child,) = find_descendants(watcher.pid)
    watcher.kill()
    wait_until(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split())
