"""Fixtures of the command line's tests: an own storage root, and the command line in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.sample_jobs import write_sample_jobs

from periflow_ray.cli.main import cli
from periflow_ray.store.root import StorageRoot


@pytest.fixture(autouse=True)
def _utc_and_own_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("PERIFLOW_STORAGE", str(tmp_path / "storage"))
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def root(tmp_path: Path) -> StorageRoot:
    """An empty storage root, the one that commands use by default."""
    return StorageRoot(str(tmp_path / "storage"))


@pytest.fixture
def sample_root(root: StorageRoot, tmp_path: Path) -> StorageRoot:
    """The storage root with the sample jobs."""
    write_sample_jobs(root, tmp_path)
    return root


@pytest.fixture
def run_cli() -> Callable[..., Result]:
    """Runs the command line in this process: ``run_cli("job", "list", input="...")``."""

    def run(*args: str, input: str | None = None) -> Result:
        return CliRunner().invoke(cli, list(args), prog_name="periflow-ray", input=input)

    return run
