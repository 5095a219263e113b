"""Checkpoints that another job goes on from are kept, whatever the rules of their own job say."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from periflow_ray.runtime.monitor.kept_checkpoints import KeptCheckpoints, Retention
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints import Manifest, StoredFile, lifecycle
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


@pytest.mark.parametrize("moment", ["read_manifest", "put_into_trash", "read_pins", "destroy"])
def test_a_pin_that_comes_while_a_checkpoint_is_deleted_keeps_it_or_sees_that_it_is_gone(
    root: StorageRoot, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    name = "step-00000010"
    checkpoints.commit(root, Manifest(name, 3, 10, 1, 1, 1, 1.0, (StoredFile("a", 0, "", 0, "files/a"),)))
    action = getattr(lifecycle, moment)
    seen = []

    def is_there() -> bool:
        return [each.checkpoint for each in checkpoints.list_committed(root, 3)] == [name]

    def pin_and_look(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(lifecycle, moment, action)
        pin(root, 3, name, 7)
        seen.append(is_there())
        return action(*arguments, **options)

    monkeypatch.setattr(lifecycle, moment, pin_and_look)
    is_gone = checkpoints.destroy_committed(root, 3, name)
    assert is_gone == (moment == "destroy")
    assert is_there() != is_gone
    # Whoever saw it after the pin has it.
    assert is_there() or seen == [False]
