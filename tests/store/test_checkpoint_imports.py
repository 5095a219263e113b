from __future__ import annotations

import time
from dataclasses import replace

import pytest
from support.trees import read_tree, write_tree

from periflow_ray.errors import NotFoundError, StorageError, UsageError
from periflow_ray.jobs.checkpoint_status import list_all
from periflow_ray.store.checkpoints import (
    Manifest,
    StoredEntry,
    StoredFile,
    checkpoint_key,
    find_checkpoint,
    list_committed,
    restore,
    verify,
)
from periflow_ray.store.checkpoints.imports import link_checkpoint, upload_checkpoint_dir
from periflow_ray.store.checkpoints.trash import purge, trash, untrash
from periflow_ray.store.checksum import checksum_file
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import Transfer

CONTENTS = {"model.pt": b"weights", "vocab/tokens.txt": b"a b c"}


@pytest.fixture
def source(tmp_path):
    """A directory with a checkpoint from elsewhere."""
    return write_tree(tmp_path / "resnet", CONTENTS)


def test_a_directory_becomes_a_checkpoint_that_no_job_made(root, source, tmp_path):
    manifest = upload_checkpoint_dir(root, source, "resnet-base", step=400, created_by="ada", metrics={"top1": 0.75})
    assert manifest == Manifest(
        checkpoint="resnet-base",
        job_id=None,
        step=400,
        attempt=0,
        world_size=0,
        num_nodes=1,
        created_unix_s=manifest.created_unix_s,
        files=(
            StoredFile("model.pt", 7, checksum_file(source / "model.pt"), 0, "files/model.pt"),
            StoredFile("vocab/tokens.txt", 5, checksum_file(source / "vocab/tokens.txt"), 0, "files/vocab/tokens.txt"),
        ),
        metrics={"top1": 0.75},
        created_by="ada",
        entries=(StoredEntry("vocab"),),
    )
    assert find_checkpoint(root, "resnet-base") == manifest
    assert list_committed(root, None) == [manifest]
    assert verify(root, manifest) == []
    restore(root, manifest, 3, tmp_path / "restored")
    assert read_tree(tmp_path / "restored") == CONTENTS


def test_a_linked_checkpoint_is_restored_from_where_its_files_are(root, source, tmp_path):
    read = []
    manifest = link_checkpoint(root, str(source), "linked", on_file=lambda path, size: read.append((path, size)))
    assert read == [("model.pt", 7), ("vocab/tokens.txt", 5)]
    assert (manifest.uri, [file.key for file in manifest.files]) == (str(source), ["model.pt", "vocab/tokens.txt"])
    assert find_checkpoint(root, "linked") == manifest
    assert set(root.list_files(checkpoint_key(None, "linked"))) == {"manifest.json"}
    # Also with a transfer for the storage root, which is another place.
    restore(root, manifest, 0, tmp_path / "restored", Transfer(root))
    assert read_tree(tmp_path / "restored") == CONTENTS
    # What is added there later does not belong to it, what is changed does.
    write_tree(source, {"later.pt": b"x"})
    assert verify(root, manifest) == []
    write_tree(source, {"model.pt": b"weightz"})
    assert [problem.key for problem in verify(root, manifest)] == ["model.pt"]


def test_a_single_file_can_be_linked(root, source, tmp_path):
    manifest = link_checkpoint(root, str(source / "model.pt"), "one-file")
    assert (manifest.uri, [file.path for file in manifest.files]) == (str(source), ["model.pt"])
    restore(root, manifest, 0, tmp_path / "restored")
    assert read_tree(tmp_path / "restored") == {"model.pt": b"weights"}


def test_files_of_an_object_store_can_be_linked(root, tmp_path):
    bucket = StorageRoot("memory://models/resnet")
    bucket.write_bytes("deep/model.pt", b"weights")
    try:
        manifest = link_checkpoint(root, "memory://models/resnet", "linked")
        restore(root, manifest, 0, tmp_path / "restored")
        one = link_checkpoint(root, "memory://models/resnet/deep/model.pt", "one-file")
        assert verify(root, one) == verify(root, manifest) == []
    finally:
        bucket.delete("deep")
    assert read_tree(tmp_path / "restored") == {"deep/model.pt": b"weights"}
    assert [file.path for file in one.files] == ["model.pt"]


def test_deleting_a_linked_checkpoint_leaves_its_files_alone(root, source):
    manifest = link_checkpoint(root, str(source), "linked")
    trash(root, "linked")
    assert untrash(root, "linked") == manifest
    until_unix_s = trash(root, "linked", keep_s=0)
    assert purge(root, None, until_unix_s) == ["linked"]
    assert read_tree(source) == CONTENTS


def test_a_name_is_used_once_and_again_when_the_deletion_is_final(root, source):
    upload_checkpoint_dir(root, source, "resnet")
    for make in (lambda: upload_checkpoint_dir(root, source, "resnet"), lambda: link_checkpoint(root, "/", "resnet")):
        with pytest.raises(UsageError) as caught:
            make()
        assert str(caught.value) == (
            "checkpoint 'resnet' already exists. Delete it first (periflow-ray checkpoint delete resnet) or choose "
            "another name."
        )
    trash(root, "resnet")
    with pytest.raises(UsageError, match="is deleted and can still be undeleted"):
        upload_checkpoint_dir(root, source, "resnet")
    untrash(root, "resnet")
    assert trash(root, "resnet", keep_s=0) <= time.time()
    assert upload_checkpoint_dir(root, source, "resnet") == find_checkpoint(root, "resnet")


@pytest.mark.parametrize("name", ["", "12", "a/b", "..", ".hidden", "-n", "ré", "a" * 129, "a\n"])
def test_a_name_that_could_be_taken_for_something_else_is_refused(root, source, name):
    for make in (
        lambda: upload_checkpoint_dir(root, source, name),
        lambda: link_checkpoint(root, str(source), name),
    ):
        with pytest.raises(UsageError) as caught:
            make()
        assert str(caught.value) == (
            f"checkpoint name {name!r} cannot be used: letters, digits, '.', '_' and '-', starting with a letter or "
            "digit, and not digits alone."
        )


def test_there_must_be_something_to_make_a_checkpoint_of(root, source, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is not a directory"):
        upload_checkpoint_dir(root, source / "model.pt", "resnet")
    with pytest.raises(UsageError, match="there are no files in"):
        upload_checkpoint_dir(root, tmp_path / "empty", "resnet")
    for uri in (str(tmp_path / "empty"), str(tmp_path / "nothing"), "memory://nothing"):
        with pytest.raises(NotFoundError, match="there are no files at"):
            link_checkpoint(root, uri, "resnet")
    assert list_all(root, None) == []


def test_a_file_that_changes_while_it_is_uploaded_makes_the_upload_fail_and_another_one_works(root, source):
    def change(num_bytes: int) -> None:
        write_tree(source, {"model.pt": b"trained on"})

    with pytest.raises(StorageError) as caught:
        upload_checkpoint_dir(root, source, "resnet", transfer=Transfer(root, num_workers=1, on_bytes=change))
    assert str(caught.value) == f"'{source / 'model.pt'}' changed while it was uploaded; nothing is stored. Try again"
    (entry,) = list_all(root, None)
    assert (entry.status, entry.reason) == ("partial", str(caught.value))
    assert set(root.list_files(checkpoint_key(None, "resnet"))) == {"uploading.json"}
    manifest = upload_checkpoint_dir(root, source, "resnet")
    assert list_committed(root, None) == [manifest]
    assert verify(root, manifest) == []


def test_the_storage_root_may_be_read_from_another_name_of_the_same_place(root, source, tmp_path):
    manifest = upload_checkpoint_dir(root, source, "resnet")
    restore(StorageRoot(f"{root.uri}/"), replace(manifest), 0, tmp_path / "restored")
    assert read_tree(tmp_path / "restored") == CONTENTS
