from __future__ import annotations

import pytest
from support.stored_checkpoints import STEP_10, save
from support.trees import write_tree

from periflow_ray.store.checkpoints import checkpoint_key, verify
from periflow_ray.store.checkpoints.verifying import Problem
from periflow_ray.store.checksum import checksum_file


@pytest.fixture
def manifest(root, tmp_path):
    """A checkpoint of two nodes with four stored files."""
    return save(
        root,
        tmp_path,
        {0: {"model.pt": b"weights", "empty": b"", "rng": b"node 0"}, 1: {"model.pt": b"weights", "rng": b"node 1"}},
    )


def test_every_file_of_an_intact_checkpoint_is_read(root, manifest):
    read = []
    assert verify(root, manifest, lambda file: read.append((file.key, file.size))) == []
    assert sorted(read) == [("files/empty", 0), ("files/model.pt", 7), ("files/rng", 6), ("node-1/rng", 6)]


def test_every_problem_is_told_not_the_first_one(root, manifest, tmp_path):
    changes = {("files", "model.pt"): b"weightz", ("node-1", "rng"): b"node 1 and more", ("files", "new.pt"): b"new"}
    for parts, content in changes.items():
        root.write_bytes(checkpoint_key(1, STEP_10, *parts), content)
    root.delete(checkpoint_key(1, STEP_10, "files", "empty"))
    found = checksum_file(write_tree(tmp_path, {"x": b"weightz"}) / "x")
    expected = checksum_file(write_tree(tmp_path, {"x": b"weights"}) / "x")
    assert verify(root, manifest) == [
        Problem("files/empty", "is missing"),
        Problem("files/model.pt", f"has checksum {found}, {expected} in the manifest"),
        Problem("files/new.pt", "is not in the manifest"),
        Problem("node-1/rng", "has 15 bytes, 6 in the manifest"),
    ]


def test_a_checkpoint_without_any_of_its_files_has_all_of_them_missing(root, manifest):
    root.delete(checkpoint_key(1, STEP_10))
    assert {problem.text for problem in verify(root, manifest)} == {"is missing"}
