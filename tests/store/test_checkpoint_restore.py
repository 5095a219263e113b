from __future__ import annotations

import os
from dataclasses import replace

import pytest
from support.stored_checkpoints import STEP_10, save
from support.trees import read_tree, write_tree

from periflow_ray.errors import CorruptCheckpointError, StorageError
from periflow_ray.store.checkpoints import checkpoint_key, restore
from periflow_ray.store.checkpoints.restoring import is_partly_restored
from periflow_ray.store.checksum import checksum_file
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import Transfer


def checksum_of(tmp_path, content: bytes) -> str:
    return checksum_file(write_tree(tmp_path, {"checksummed": content}) / "checksummed")


def test_each_node_gets_its_own_variant_and_a_new_node_the_lowest_ones(root, tmp_path):
    manifest = save(
        root,
        tmp_path,
        {
            0: {"model.pt": b"weights", "rng": b"node 0"},
            1: {"model.pt": b"weights", "rng": b"node 1", "shards/1.pt": b"shard"},
        },
    )
    for node_rank, rng in ((0, b"node 0"), (1, b"node 1"), (2, b"node 0")):
        target = tmp_path / f"restored-{node_rank}"
        restore(root, manifest, node_rank, target)
        assert read_tree(target) == {"model.pt": b"weights", "rng": rng, "shards/1.pt": b"shard"}


def test_restoring_replaces_what_was_there_before_and_leaves_nothing_else(root, tmp_path):
    manifest = save(root, tmp_path, {0: {"model.pt": b"weights", "empty": b""}})
    node_dir = tmp_path / "node"
    target = write_tree(node_dir / "ckpt", {"model.pt": b"newer but never saved", "deep/other.pt": b"x"})
    restore(root, manifest, 0, target)
    assert read_tree(target) == {"model.pt": b"weights", "empty": b""}
    assert os.listdir(node_dir) == ["ckpt"]


def test_a_transfer_and_its_limits_can_be_given(root, tmp_path):
    manifest = save(root, tmp_path, {0: {"a.pt": b"aaaa", "b.pt": b"bb"}})
    arrived: list[int] = []
    restore(root, manifest, 0, tmp_path / "one", Transfer(root, num_workers=1, on_bytes=arrived.append))
    restore(root, manifest, 0, tmp_path / "two", on_bytes=arrived.append)
    assert sum(arrived) == 12


def test_a_link_to_the_target_stays_a_link(root, tmp_path):
    manifest = save(root, tmp_path, {0: {"model.pt": b"weights"}})
    write_tree(tmp_path / "large-disk" / "ckpt", {"old.pt": b"old"})
    (tmp_path / "ckpt").symlink_to(tmp_path / "large-disk" / "ckpt")
    restore(root, manifest, 0, tmp_path / "ckpt")
    assert (tmp_path / "ckpt").is_symlink()
    assert read_tree(tmp_path / "large-disk" / "ckpt") == {"model.pt": b"weights"}


def test_writing_to_a_restored_file_does_not_reach_the_stored_one(root, tmp_path):
    manifest = save(root, tmp_path, {0: {"model.pt": b"weights"}})
    restore(root, manifest, 0, tmp_path / "ckpt")
    with open(tmp_path / "ckpt" / "model.pt", "r+b") as file:
        file.write(b"WEIGHTS")
    assert root.read_bytes(checkpoint_key(1, STEP_10, "files", "model.pt")) == b"weights"


class Killed(StorageError):
    """Ends a restore where a killed process would have ended."""


def break_off(root, manifest, target) -> set[str]:
    """A restore that ends when the third file begins to arrive; returns the files that have arrived whole."""
    num_bytes = 0

    def count(num_new: int) -> None:
        nonlocal num_bytes
        num_bytes += num_new
        if num_bytes > manifest.files[0].size + manifest.files[1].size:
            raise Killed

    with pytest.raises(Killed):
        restore(root, manifest, 0, target, Transfer(root, num_workers=1, on_bytes=count))
    partial = target.with_name(f".{target.name}.restoring")
    return {file.path for file in manifest.files if (partial / file.path).exists()}


FILES = {"a.pt": b"a" * 10, "b.pt": b"b" * 10, "c.pt": b"c" * 10, "d.pt": b"d" * 10}


def test_a_restore_that_was_cut_short_goes_on_where_it_ended(root, tmp_path):
    manifest = save(root, tmp_path, {0: FILES})
    target = write_tree(tmp_path / "node" / "ckpt", {"own.pt": b"own"})
    arrived = break_off(root, manifest, target)
    assert {"a.pt"} <= arrived < set(FILES)
    assert read_tree(target) == {"own.pt": b"own"}
    assert is_partly_restored(target)
    for path in arrived:
        # Read once more, it would not be accepted.
        root.write_bytes(checkpoint_key(1, STEP_10, "files", path), b"x" * 10)
    restore(root, manifest, 0, target)
    assert read_tree(target) == FILES
    assert not is_partly_restored(target)
    assert os.listdir(tmp_path / "node") == ["ckpt"]


def test_what_is_left_of_another_checkpoint_is_not_used(root, tmp_path):
    first = save(root, tmp_path, {0: {**FILES, "z.pt": b"z"}}, step=10)
    second = save(root, tmp_path, {0: {name: content.upper() for name, content in FILES.items()}}, step=20)
    assert break_off(root, first, tmp_path / "ckpt")
    restore(root, second, 0, tmp_path / "ckpt")
    assert read_tree(tmp_path / "ckpt") == {name: content.upper() for name, content in FILES.items()}


def test_files_that_nobody_knows_are_not_taken_for_a_part_of_it(root, tmp_path):
    manifest = save(root, tmp_path, {0: {"model.pt": b"weights"}})
    write_tree(tmp_path / ".ckpt.restoring", {"left-over": b"x"})
    restore(root, manifest, 0, tmp_path / "ckpt")
    assert read_tree(tmp_path / "ckpt") == {"model.pt": b"weights"}


def refuse(root, manifest, tmp_path) -> str:
    """Restore to a directory with a file in it, which must stay as it is; returns the error."""
    target = write_tree(tmp_path / "node" / "ckpt", {"own.pt": b"own"})
    with pytest.raises(CorruptCheckpointError) as caught:
        restore(root, manifest, 0, target)
    assert read_tree(tmp_path / "node") == {"ckpt/own.pt": b"own"}
    assert os.listdir(tmp_path / "node") == ["ckpt"]
    return str(caught.value)


@pytest.mark.parametrize("damage", [b"weight", b"weights and more", b""])
def test_a_file_of_another_size_is_refused_and_the_target_stays_untouched(root, tmp_path, damage):
    manifest = save(root, tmp_path, {0: {"a.pt": b"fine", "model.pt": b"weights"}})
    root.write_bytes(checkpoint_key(1, STEP_10, "files", "model.pt"), damage)
    assert refuse(root, manifest, tmp_path) == (
        f"checkpoint 1/{STEP_10} is damaged: 'files/model.pt' has {len(damage)} bytes, 7 in the manifest"
    )


def test_a_file_of_another_content_is_refused_and_the_target_stays_untouched(root, tmp_path):
    manifest = save(root, tmp_path, {0: {"a.pt": b"fine", "model.pt": b"weights"}})
    root.write_bytes(checkpoint_key(1, STEP_10, "files", "model.pt"), b"weightz")
    expected, found = (checksum_of(tmp_path, content) for content in (b"weights", b"weightz"))
    assert refuse(root, manifest, tmp_path) == (
        f"checkpoint 1/{STEP_10} is damaged: 'files/model.pt' has checksum {found}, {expected} in the manifest"
    )


def test_a_lost_file_is_refused_and_the_target_stays_untouched(root, tmp_path):
    manifest = save(root, tmp_path, {0: {"a.pt": b"fine", "model.pt": b"weights"}})
    root.delete(checkpoint_key(1, STEP_10, "files", "model.pt"))
    assert refuse(root, manifest, tmp_path) == f"checkpoint 1/{STEP_10} is damaged: 'files/model.pt' is missing"


class SilentRoot(StorageRoot):
    """A root that does not answer."""

    def list_files(self, prefix):
        raise StorageError("no answer in time")


def test_a_root_that_does_not_answer_is_not_a_damaged_checkpoint(root, tmp_path):
    manifest = save(root, tmp_path, {0: {"model.pt": b"weights"}})
    with pytest.raises(StorageError, match=r"^no answer in time$") as caught:
        restore(SilentRoot(root.uri), manifest, 0, tmp_path / "ckpt")
    assert not isinstance(caught.value, CorruptCheckpointError)


def test_a_manifest_cannot_write_outside_the_target(root, tmp_path):
    manifest = save(root, tmp_path, {0: {"model.pt": b"weights"}})
    hostile = replace(manifest, files=(replace(manifest.files[0], path="../evil.pt"),))
    assert refuse(root, hostile, tmp_path).startswith(f"checkpoint 1/{STEP_10} is refused: its manifest has a file '..")
