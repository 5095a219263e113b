from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.store.checkpoints import (
    LocalFile,
    Manifest,
    StoredFile,
    checkpoint_key,
    choose_name,
    commit,
    describe_files,
    find_checkpoint,
    latest_committed,
    list_committed,
    merge_files,
    read_manifest,
    restore,
)

EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def write_tree(directory: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


def read_tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def save(root, tmp_path, contents_by_node, *, step=10, name=None, job_id=1) -> Manifest:
    """What the nodes and the monitor do together: describe, merge, upload, commit."""
    name = name or choose_name(root, job_id, step)
    snapshots = {
        node_rank: write_tree(tmp_path / f"snapshot-{name}-{node_rank}", contents)
        for node_rank, contents in contents_by_node.items()
    }
    files = merge_files({node_rank: describe_files(snapshot) for node_rank, snapshot in snapshots.items()})
    for file in files:
        root.upload_file(snapshots[file.node_rank] / file.path, checkpoint_key(job_id, name, file.key))
    manifest = Manifest(
        checkpoint=name,
        job_id=job_id,
        step=step,
        attempt=1,
        world_size=4,
        num_nodes=len(contents_by_node),
        created_unix_s=1_700_000_000.5,
        files=tuple(files),
        metrics={"loss": 0.5},
    )
    commit(root, manifest)
    return manifest


def test_files_are_described_by_path_size_and_checksum(tmp_path):
    write_tree(tmp_path, {"b/model.pt": b"weights", "a.txt": b"", ".hidden": b"x"})
    (tmp_path / "empty").mkdir()
    assert describe_files(tmp_path) == [
        LocalFile(".hidden", 1, hashlib.sha256(b"x").hexdigest()),
        LocalFile("a.txt", 0, EMPTY_SHA256),
        LocalFile("b/model.pt", 7, hashlib.sha256(b"weights").hexdigest()),
    ]


def test_a_link_to_a_file_counts_as_a_file_and_a_broken_one_as_nothing(tmp_path):
    write_tree(tmp_path, {"epoch=1.ckpt": b"weights"})
    (tmp_path / "last.ckpt").symlink_to("epoch=1.ckpt")
    (tmp_path / "gone.ckpt").symlink_to("epoch=0.ckpt")
    assert [(file.path, file.size) for file in describe_files(tmp_path)] == [("epoch=1.ckpt", 7), ("last.ckpt", 7)]


def test_nodes_with_equal_files_upload_them_once():
    model, optimizer = LocalFile("model.pt", 7, "aa"), LocalFile("optimizer.pt", 9, "bb")
    assert merge_files({1: [model, optimizer], 0: [model]}) == [
        StoredFile("model.pt", 7, "aa", 0, "files/model.pt"),
        StoredFile("optimizer.pt", 9, "bb", 1, "files/optimizer.pt"),
    ]


def test_nodes_with_different_files_of_one_name_upload_one_each():
    assert merge_files(
        {
            0: [LocalFile("rng.pt", 4, "00")],
            1: [LocalFile("rng.pt", 4, "11")],
            2: [LocalFile("rng.pt", 5, "00")],
            3: [LocalFile("rng.pt", 4, "00")],
        }
    ) == [
        StoredFile("rng.pt", 4, "00", 0, "files/rng.pt"),
        StoredFile("rng.pt", 4, "11", 1, "node-1/rng.pt"),
        StoredFile("rng.pt", 5, "00", 2, "node-2/rng.pt"),
    ]


def test_a_node_without_files_takes_part_with_none():
    assert merge_files({0: [], 1: [LocalFile("a", 1, "aa")]}) == [StoredFile("a", 1, "aa", 1, "files/a")]
    assert merge_files({}) == []


def test_a_second_checkpoint_of_a_step_gets_a_number(root):
    assert choose_name(root, 1, 30) == "step-00000030"
    assert choose_name(root, 1, 30, pending=["step-00000030"]) == "step-00000030.2"
    root.write_bytes(checkpoint_key(1, "step-00000030", "files", "partial"), b"")
    root.write_bytes(checkpoint_key(1, "step-00000030.2", "files", "partial"), b"")
    assert choose_name(root, 1, 30) == "step-00000030.3"
    assert choose_name(root, 2, 30) == "step-00000030"


def test_a_committed_checkpoint_reads_back(root, tmp_path):
    manifest = save(
        root, tmp_path, {0: {"model.pt": b"weights", "rng": b"0"}, 1: {"model.pt": b"weights", "rng": b"1"}}
    )
    assert read_manifest(root, 1, "step-00000010") == manifest
    assert list_committed(root, 1) == [manifest]
    assert manifest.size == 9


def test_without_its_manifest_a_checkpoint_does_not_exist(root, tmp_path):
    manifest = save(root, tmp_path, {0: {"model.pt": b"weights"}})
    root.upload_file(write_tree(tmp_path, {"x": b"x"}) / "x", checkpoint_key(1, "step-00000020", "files", "x"))
    assert list_committed(root, 1) == [manifest]
    assert latest_committed(root, 1) == manifest
    with pytest.raises(NotFoundError):
        read_manifest(root, 1, "step-00000020")


@pytest.mark.parametrize(
    "damage", [b"", b'{"checkpoint": "step-0000', b"null", b"[]", b'{"files": [{"path": "a"}]}', b"{}"]
)
def test_a_damaged_manifest_is_said_to_be_and_the_one_before_is_the_latest(root, tmp_path, damage):
    older = save(root, tmp_path, {0: {"model.pt": b"old"}}, step=10)
    save(root, tmp_path, {0: {"model.pt": b"new"}}, step=20)
    key = checkpoint_key(1, "step-00000020", "manifest.json")
    root.write_bytes(key, damage)
    with pytest.raises(StorageError) as caught:
        read_manifest(root, 1, "step-00000020")
    assert str(caught.value).startswith(f"the manifest '{key}' is damaged: ")
    assert latest_committed(root, 1) == older
    assert list_committed(root, 1) == [older]


def test_the_latest_checkpoint_is_the_one_of_the_highest_step(root, tmp_path):
    names = []
    for step in (9, 10, 100_000_000, 10):
        names.append(save(root, tmp_path, {0: {"step": str(step).encode()}}, step=step).checkpoint)
    assert names == ["step-00000009", "step-00000010", "step-100000000", "step-00000010.2"]
    listed = [manifest.checkpoint for manifest in list_committed(root, 1)]
    assert listed == ["step-00000009", "step-00000010", "step-00000010.2", "step-100000000"]
    latest = latest_committed(root, 1)
    assert latest is not None
    assert latest.checkpoint == "step-100000000"
    assert latest_committed(root, 2) is None


def test_a_checkpoint_is_found_by_its_id(root, tmp_path):
    manifest = save(root, tmp_path, {0: {"model.pt": b"weights"}}, step=400, job_id=12)
    assert manifest.checkpoint_id == "12/step-00000400"
    assert find_checkpoint(root, "12/step-00000400") == manifest


@pytest.mark.parametrize(
    "checkpoint_id", ["12/step-00000401", "13/step-00000400", "12", "step-00000400", "12/../12/step-00000400", ""]
)
def test_an_id_that_names_no_checkpoint_is_answered_with_what_one_looks_like(root, tmp_path, checkpoint_id):
    save(root, tmp_path, {0: {"model.pt": b"weights"}}, step=400, job_id=12)
    with pytest.raises(NotFoundError) as caught:
        find_checkpoint(root, checkpoint_id)
    assert str(caught.value) == (
        f"checkpoint '{checkpoint_id}' does not exist. An ID is <job>/<name>, for example 12/step-00000400; "
        "'periflow-ray job view 12' lists those of job 12."
    )


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


def test_restoring_replaces_what_was_there_before(root, tmp_path):
    manifest = save(root, tmp_path, {0: {"model.pt": b"weights"}})
    target = write_tree(tmp_path / "ckpt", {"model.pt": b"newer but never saved", "deep/other.pt": b"x"})
    restore(root, manifest, 0, target)
    assert read_tree(target) == {"model.pt": b"weights"}


def test_restoring_goes_on_after_an_earlier_try_was_cut_short(root, tmp_path):
    manifest = save(root, tmp_path, {0: {"model.pt": b"weights"}})
    write_tree(tmp_path / ".ckpt.restoring", {"left-over": b"x"})
    restore(root, manifest, 0, tmp_path / "ckpt")
    assert read_tree(tmp_path / "ckpt") == {"model.pt": b"weights"}


@pytest.mark.parametrize("damage", [b"weightz", b"weight", b"weights and more", b""])
def test_a_damaged_file_is_refused_and_the_target_stays_untouched(root, tmp_path, damage):
    manifest = save(root, tmp_path, {0: {"a.pt": b"fine", "model.pt": b"weights"}})
    root.write_bytes(checkpoint_key(1, "step-00000010", "files", "model.pt"), damage)
    target = write_tree(tmp_path / "ckpt", {"own.pt": b"own"})
    with pytest.raises(StorageError) as caught:
        restore(root, manifest, 0, target)
    assert str(caught.value) == "checkpoint step-00000010: 'model.pt' differs from its manifest"
    assert read_tree(target) == {"own.pt": b"own"}


def test_a_lost_file_is_refused_and_the_target_stays_untouched(root, tmp_path):
    manifest = save(root, tmp_path, {0: {"a.pt": b"fine", "model.pt": b"weights"}})
    root.delete(checkpoint_key(1, "step-00000010", "files", "model.pt"))
    target = write_tree(tmp_path / "ckpt", {"own.pt": b"own"})
    with pytest.raises(StorageError) as caught:
        restore(root, manifest, 0, target)
    assert str(caught.value) == "checkpoint step-00000010 has lost its file 'model.pt'"
    assert read_tree(target) == {"own.pt": b"own"}
