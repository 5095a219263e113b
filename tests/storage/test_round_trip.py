"""Whatever was in a directory is in it again: through checkpoints, datasets and workspaces, on every storage."""

from __future__ import annotations

import os
import random
import tarfile
from pathlib import Path

import pytest
from support.random_trees import make_tree, read_tree_facts, without_others

from periflow_ray.runtime.member.snapshot import Snapshots
from periflow_ray.runtime.member.uploads import bring_files
from periflow_ray.runtime.monitor.contract import Assignment
from periflow_ray.store.checkpoints import (
    Manifest,
    commit,
    find_checkpoint,
    merge_contents,
    read_manifest,
    restore,
    verify,
)
from periflow_ray.store.checkpoints.imports import upload_checkpoint_dir
from periflow_ray.store.datasets import upload_dataset
from periflow_ray.store.datasets.cache import DatasetCache
from periflow_ray.store.datasets.local import open_dataset
from periflow_ray.store.datasets.records import edit_dataset
from periflow_ray.store.read_only import remove_tree
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import Transfer
from periflow_ray.submit.workspace import pack_workspace, scan_workspace

SEEDS = range(6)
# Archives have times as floating-point numbers.
WORKSPACE_TIME_NS = 1000


@pytest.fixture(params=SEEDS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory with all kinds of things in it."""
    make_tree(tmp_path / "source", random.Random(request.param))
    return tmp_path / "source"


def test_a_checkpoint_of_a_directory(any_root: StorageRoot, source: Path, tmp_path: Path) -> None:
    skipped: list[str] = []
    upload_checkpoint_dir(any_root, source, "tree", on_skipped=lambda path, reason: skipped.append(path))
    manifest = find_checkpoint(any_root, "tree")
    assert verify(any_root, manifest) == []
    restore(any_root, manifest, 0, tmp_path / "restored")
    expected = read_tree_facts(source)
    assert read_tree_facts(tmp_path / "restored") == without_others(expected)
    # Nothing is left out without a word.
    assert sorted(os.path.relpath(path, source) for path in skipped) == sorted(
        path for path, fact in expected.items() if fact == ("other",)
    )


def test_a_checkpoint_of_a_job(any_root: StorageRoot, source: Path, tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "snapshots")
    expected = without_others(read_tree_facts(source))
    previous: Manifest | None = None
    # The second one copies from the first.
    for step in (1, 2):
        snapshot = snapshots.take(source, str(step))
        plan = merge_contents({0: snapshots.describe(snapshot)}, previous)
        bring_files(
            any_root, 1, Assignment(f"step-0000000{step}", tuple(plan.files)), snapshot.directory, Transfer(any_root)
        )
        files, entries = tuple(file.as_stored() for file in plan.files), tuple(plan.entries)
        commit(any_root, Manifest(f"step-0000000{step}", 1, step, 1, 1, 1, 0.0, files, entries=entries))
        previous = read_manifest(any_root, 1, f"step-0000000{step}")
        # What was there before is replaced.
        restore(any_root, previous, 0, tmp_path / "restored")
        assert read_tree_facts(tmp_path / "restored") == expected


def test_a_dataset(any_root: StorageRoot, source: Path, tmp_path: Path) -> None:
    upload_dataset(any_root, "tree", source, contents_only=True)
    expected = without_others(read_tree_facts(source))
    for name in ("tree", "renamed"):
        opened = open_dataset(any_root, name, cache=DatasetCache(tmp_path / name, max_bytes=1 << 30))
        try:
            assert read_tree_facts(opened.path) == expected
        finally:
            opened.close()
            remove_tree(tmp_path / name)
        if name == "tree":
            edit_dataset(any_root, "tree", new_name="renamed")


def test_a_workspace(source: Path, tmp_path: Path) -> None:
    pack_workspace(scan_workspace(source), tmp_path / "workspace.tar.gz")
    with tarfile.open(tmp_path / "workspace.tar.gz") as packed:
        packed.extractall(tmp_path / "node", filter="data")
    expected, found = without_others(read_tree_facts(source)), read_tree_facts(tmp_path / "node" / "source")
    assert {path: fact[:-1] for path, fact in found.items()} == {path: fact[:-1] for path, fact in expected.items()}
    for path, fact in found.items():
        if fact[0] != "link":  # Archives are unpacked without the times of links.
            assert abs(int(str(fact[-1])) - int(str(expected[path][-1]))) <= WORKSPACE_TIME_NS
