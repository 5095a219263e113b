"""Checkpoints that another job goes on from are kept, whatever the rules of their own job say."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from periflow_ray.runtime.monitor.kept_checkpoints import KeptCheckpoints, Retention
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints import Manifest, StoredFile
from periflow_ray.store.checkpoints.pins import pin, read_pins, unpin
from periflow_ray.store.root import StorageRoot


@pytest.fixture
def root(tmp_path: Path) -> StorageRoot:
    return StorageRoot(str(tmp_path / "storage"))


def test_a_pin_is_of_one_job_and_ends_with_it(root: StorageRoot) -> None:
    assert read_pins(root, 3) == frozenset()
    pin(root, 3, "step-00000010", 7)
    pin(root, 3, "step-00000010", 8)
    pin(root, 3, "step-00000020", 8)
    assert read_pins(root, 3) == {"step-00000010", "step-00000020"}
    unpin(root, 3, "step-00000010", 7)
    assert read_pins(root, 3) == {"step-00000010", "step-00000020"}
    unpin(root, 3, "step-00000010", 8)
    assert read_pins(root, 3) == {"step-00000020"}
    assert read_pins(root, 4) == frozenset()


def test_what_is_pinned_does_not_expire_and_goes_once_it_is_not(root: StorageRoot) -> None:
    async def run() -> list[list[str]]:
        kept = KeptCheckpoints(root, 3, Retention(keep_last=1), lambda kind, text: None)
        left = []
        for step in (10, 20, 30, 40):
            name = f"step-{step:08d}"
            manifest = Manifest(name, 3, step, 1, 1, 1, float(step), (StoredFile("a", 0, "", 0, "files/a"),))
            checkpoints.commit(root, manifest)
            if step == 10:
                pin(root, 3, name, 7)
            if step == 40:
                unpin(root, 3, "step-00000010", 7)
            kept.add(manifest)
            await kept.close()
            left.append(sorted(each.checkpoint[-2:] for each in checkpoints.list_committed(root, 3)))
        return left

    assert asyncio.run(run()) == [["10"], ["10", "20"], ["10", "30"], ["40"]]
