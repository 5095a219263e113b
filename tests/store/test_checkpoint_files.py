from __future__ import annotations

from collections.abc import Mapping

import pytest
from support.stored_checkpoints import STEP_10, save
from support.trees import read_tree, write_tree

from periflow_ray.errors import CorruptCheckpointError
from periflow_ray.store.checkpoints import (
    LocalFile,
    Manifest,
    PlannedFile,
    StoredFile,
    checkpoint_key,
    describe_tree,
    destroy_committed,
    merge_contents,
    restore,
)
from periflow_ray.store.checkpoints.files import Content, select_content
from periflow_ray.store.checksum import checksum_file
from periflow_ray.store.trees import TreeEntry


def manifest_of(*files: StoredFile, name: str = STEP_10) -> Manifest:
    return Manifest(name, 1, 10, 1, 2, 2, 0.0, files)


def merge(files_by_node: Mapping[int, list[LocalFile]], *manifests: Manifest | None) -> list[PlannedFile]:
    return merge_contents({rank: Content(files) for rank, files in files_by_node.items()}, *manifests).files


def test_files_are_described_by_path_size_and_checksum(tmp_path):
    write_tree(tmp_path, {"b/model.pt": b"weights", "a.txt": b"", ".hidden": b"x"})
    (tmp_path / "empty").mkdir()
    assert describe_tree(tmp_path).files == [
        LocalFile(".hidden", 1, checksum_file(tmp_path / ".hidden")),
        LocalFile("a.txt", 0, "xxh3_128:99aa06d3014798d86001c324468d497f"),
        LocalFile("b/model.pt", 7, checksum_file(tmp_path / "b" / "model.pt")),
    ]


def test_links_inside_stay_links_and_directories_are_listed(tmp_path):
    write_tree(tmp_path, {"epoch=1.ckpt": b"weights"})
    (tmp_path / "last.ckpt").symlink_to("epoch=1.ckpt")
    (tmp_path / "empty").mkdir()
    content = describe_tree(tmp_path)
    assert [(file.path, file.size) for file in content.files] == [("epoch=1.ckpt", 7)]
    assert content.entries == [TreeEntry("empty"), TreeEntry("last.ckpt", "epoch=1.ckpt")]


def test_a_linked_directory_is_part_of_a_checkpoint(tmp_path):
    write_tree(tmp_path, {"big/weights.bin": b"w", "ckpt/config.json": b"{}"})
    (tmp_path / "ckpt" / "unet").symlink_to(tmp_path / "big")
    found = [(file.path, file.size) for file in describe_tree(tmp_path / "ckpt").files]
    assert found == [("config.json", 2), ("unet/weights.bin", 1)]


def test_nodes_with_equal_files_upload_them_once():
    model, optimizer = LocalFile("model.pt", 7, "aa"), LocalFile("optimizer.pt", 9, "bb")
    assert merge({1: [model, optimizer], 0: [LocalFile("model.pt", 7, "aa")]}) == [
        PlannedFile("model.pt", 7, "aa", 0, "files/model.pt"),
        PlannedFile("optimizer.pt", 9, "bb", 1, "files/optimizer.pt"),
    ]


def test_nodes_with_different_files_of_one_name_upload_one_each():
    assert merge(
        {
            0: [LocalFile("rng.pt", 4, "00")],
            1: [LocalFile("rng.pt", 4, "11")],
            2: [LocalFile("rng.pt", 5, "00")],
            3: [LocalFile("rng.pt", 4, "00")],
        }
    ) == [
        PlannedFile("rng.pt", 4, "00", 0, "files/rng.pt"),
        PlannedFile("rng.pt", 4, "11", 1, "node-1/rng.pt"),
        PlannedFile("rng.pt", 5, "00", 2, "node-2/rng.pt"),
    ]


def test_a_node_without_files_takes_part_with_none():
    assert merge({0: [], 1: [LocalFile("a", 1, "aa")]}) == [PlannedFile("a", 1, "aa", 1, "files/a")]
    assert merge({}) == []


def test_a_file_that_an_earlier_checkpoint_has_is_copied_from_there_whatever_its_name_was():
    previous = manifest_of(
        StoredFile("embedding.pt", 7, "aa", 0, "files/embedding.pt"),
        StoredFile("rng.pt", 4, "00", 0, "files/rng.pt"),
        StoredFile("rng.pt", 4, "11", 1, "node-1/rng.pt"),
    )
    files = {
        0: [LocalFile("frozen.pt", 7, "aa"), LocalFile("model.pt", 7, "bb"), LocalFile("rng.pt", 5, "00")],
        1: [LocalFile("rng.pt", 4, "11")],
    }
    assert merge(files, previous) == [
        PlannedFile("frozen.pt", 7, "aa", 0, "files/frozen.pt", copy_from=f"{STEP_10}/files/embedding.pt"),
        PlannedFile("model.pt", 7, "bb", 0, "files/model.pt", copy_from=None),
        PlannedFile("rng.pt", 5, "00", 0, "files/rng.pt", copy_from=None),
        PlannedFile("rng.pt", 4, "11", 1, "node-1/rng.pt", copy_from=f"{STEP_10}/node-1/rng.pt"),
    ]


def test_a_checkpoint_with_copied_files_does_not_need_the_earlier_one(root, tmp_path):
    contents = {"frozen.pt": b"never trained", "model.pt": b"weights"}
    first = save(root, tmp_path, {0: contents}, step=10)
    second = save(root, tmp_path, {0: {**contents, "model.pt": b"trained"}}, step=20, previous=first)
    # Not even what is written over a file of the earlier one reaches the later one.
    root.write_bytes(checkpoint_key(1, STEP_10, "files", "frozen.pt"), b"damaged")
    restore(root, second, 0, tmp_path / "before")
    destroy_committed(root, 1, STEP_10)
    restore(root, second, 0, tmp_path / "after")
    assert read_tree(tmp_path / "before") == {"frozen.pt": b"never trained", "model.pt": b"trained"}
    assert read_tree(tmp_path / "after") == {"frozen.pt": b"never trained", "model.pt": b"trained"}


def test_a_planned_file_is_listed_as_a_stored_one():
    planned = PlannedFile("a", 1, "aa", 0, "files/a", copy_from="step-00000010/files/a")
    assert planned.as_stored() == StoredFile("a", 1, "aa", 0, "files/a")


def test_a_node_gets_its_own_variant_and_a_new_node_the_lowest_ones():
    model, rng_0, rng_1 = (
        StoredFile("model.pt", 7, "aa", 1, "files/model.pt"),
        StoredFile("rng.pt", 4, "00", 0, "files/rng.pt"),
        StoredFile("rng.pt", 4, "11", 1, "node-1/rng.pt"),
    )
    manifest = manifest_of(model, rng_1, rng_0)
    assert [select_content(manifest, rank)[0] for rank in (0, 1, 2)] == [[rng_0, model], [model, rng_1], [rng_0, model]]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "..", "", ".", "a/./b", "a//b", "a\0b"])
def test_a_path_that_would_lead_out_of_the_directory_is_refused(path):
    manifest = manifest_of(StoredFile("fine", 1, "aa", 0, "files/fine"), StoredFile(path, 1, "aa", 0, "files/x"))
    with pytest.raises(CorruptCheckpointError) as caught:
        select_content(manifest, 0)
    assert str(caught.value) == (
        f"checkpoint 1/{STEP_10} is refused: its manifest has a file '{path}', which does not stay inside the "
        "checkpoint's directory"
    )
