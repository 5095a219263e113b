"""Storage roots for the store's tests: a directory, and memory for the code path of object stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from periflow_ray.jobs import JobRecord, JobState, write_record, write_state
from periflow_ray.store.root import StorageRoot


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorageRoot]:
    """An empty storage root of each kind."""
    if request.param == "local":
        yield StorageRoot(str(tmp_path / "storage"))
        return
    memory = StorageRoot("memory://bucket/storage")
    yield memory
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


@pytest.fixture
def local_root(tmp_path: Path) -> StorageRoot:
    """An empty storage root in a directory."""
    return StorageRoot(str(tmp_path / "storage"))


@pytest.fixture
def add_job() -> Callable[..., JobRecord]:
    """Writes a job's record and state: ``add_job(root, 3, JobState("running"))``."""

    def add(root: StorageRoot, job_id: int, state: JobState) -> JobRecord:
        record = JobRecord(
            job_id=job_id,
            name="cifar",
            experiment="resnets",
            vm="local",
            accelerator="CPU",
            num_devices=2,
            num_nodes=2,
            dataset=None,
            created_by="ada",
            created_unix_s=1_700_000_000.0,
        )
        write_state(root, job_id, state)
        write_record(root, record)
        return record

    return add
