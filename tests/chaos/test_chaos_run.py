"""``scripts/chaos`` in short: it keeps every promise, and leaves nothing behind when it is killed."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.bench import MODULE_DIRS, REPOSITORY_DIR
from support.workbench import processes_with, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


@pytest.fixture
def short_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where runs make their directories; Ray's sockets do not fit below pytest's own."""
    with tempfile.TemporaryDirectory(prefix="c-") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        yield Path(directory)


def start_chaos(*options: object) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, (MODULE_DIRS, str(REPOSITORY_DIR), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "chaos_run", *map(str, options)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# Its first events: the driver is killed, a clock jumps, an agent and a rank are killed, a notice.
SEED = 2700


def test_a_training_outlives_some_events(short_directory: Path) -> None:
    run = start_chaos("--minutes", 0.4, "--seed", SEED)
    output, _ = run.communicate(timeout=350)
    assert run.returncode == 0, output
    assert f"seed {SEED}: every promise was kept through " in output
    assert list(short_directory.iterdir()) == []


@pytest.mark.long
def test_a_run_that_is_killed_leaves_nothing_behind(short_directory: Path) -> None:
    run = start_chaos("--minutes", 5, "--seed", 2)
    assert run.stdout is not None
    for _ in itertools.takewhile(lambda line: "the training runs" not in line, run.stdout):
        pass
    run.kill()
    run.communicate(timeout=60)
    wait_until(lambda: not processes_with(f"{short_directory}/pf-"), "all processes end", 90)
    wait_until(lambda: list(short_directory.iterdir()) == [], "the directory goes", 30)
