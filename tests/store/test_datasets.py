"""Datasets in a storage root: uploaded, linked, listed, changed, deleted.

Long because each promise about datasets has its example, on the same small one.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import fsspec
import pytest

from periflow_ray.errors import NotFoundError, StorageError, UsageError
from periflow_ray.store.checksum import checksum_file
from periflow_ray.store.datasets import (
    Dataset,
    delete_dataset,
    edit_dataset,
    link_dataset,
    list_dataset_files,
    list_datasets,
    list_unfinished_uploads,
    read_dataset,
    upload_dataset,
)
from periflow_ray.store.datasets.files import DatasetFile
from periflow_ray.store.root import StorageRoot


class Cut(BaseException):
    """Ends an upload in the middle, as the end of the process would."""


def sizes_of(root, dataset) -> dict[str, int]:
    return {file.path: file.size for file in list_dataset_files(root, dataset)}


def upload_and_cut(root, name, source) -> None:
    """An upload that ends before it sends anything."""

    def cut(phase: str, num_bytes: int, total_bytes: int) -> None:
        if phase == "uploading":
            raise Cut

    with pytest.raises(Cut):
        upload_dataset(root, name, source, contents_only=True, on_progress=cut)


def upload_all_but(root, name, source, path: str) -> None:
    """An upload that fails when it has stored every file but one."""
    content = (source / path).read_bytes()

    def change(phase: str, num_bytes: int, total_bytes: int) -> None:
        if phase == "uploading":
            (source / path).write_text("something else")

    with pytest.raises(UsageError) as caught:
        upload_dataset(root, name, source, contents_only=True, on_progress=change)
    assert str(caught.value) == (
        f"'{source}/{path}' changed while the dataset was uploaded. Upload again when nobody writes to the files; "
        "what is stored is not sent again."
    )
    (source / path).write_bytes(content)


@pytest.fixture(autouse=True)
def _empty_memory():
    yield
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "cifar"
    (directory / "train").mkdir(parents=True)
    (directory / "labels.txt").write_text("cat\ndog\n")
    (directory / "train" / "img[1].bin").write_bytes(b"\0" * 30)
    return directory


def test_a_directory_is_uploaded_under_its_name(root, source):
    progress = []
    before_unix_s = time.time()
    dataset = upload_dataset(
        root,
        "cifar-10",
        source,
        contents_only=False,
        metadata={"classes": 2},
        on_progress=lambda phase, num_bytes, total_bytes: progress.append((phase, num_bytes, total_bytes)),
    )
    assert list_dataset_files(root, dataset) == (
        DatasetFile("cifar/labels.txt", 8, checksum_file(source / "labels.txt")),
        DatasetFile("cifar/train/img[1].bin", 30, checksum_file(source / "train" / "img[1].bin")),
    )
    assert dataset == Dataset(
        name="cifar-10",
        uri=f"{root.uri}/datasets/cifar-10/files",
        created_unix_s=dataset.created_unix_s,
        is_linked=False,
        metadata={"classes": 2},
        num_files=2,
        size_bytes=38,
        content_id=dataset.content_id,
        has_entries=True,
    )
    assert before_unix_s <= dataset.created_unix_s <= time.time()
    assert read_dataset(root, "cifar-10") == dataset
    assert list_datasets(root) == [dataset]
    assert (progress[0], progress[-1]) == (("reading", 8, 38), ("uploading", 38, 38))
    assert root.list_names("datasets/cifar-10") == ["dataset.json", "entries.json", "files", "files.json"]


def test_a_trailing_slash_uploads_the_contents_only(root, source):
    dataset = upload_dataset(root, "cifar", source, contents_only=True)
    assert sizes_of(root, dataset) == {"labels.txt": 8, "train/img[1].bin": 30}


def test_the_working_directory_is_uploaded_under_its_own_name(root, source, monkeypatch):
    monkeypatch.chdir(source)
    dataset = upload_dataset(root, "cifar", Path("."), contents_only=False)
    assert sizes_of(root, dataset) == {"cifar/labels.txt": 8, "cifar/train/img[1].bin": 30}


def test_a_link_to_a_directory_is_uploaded_under_the_links_name(root, source, tmp_path):
    (tmp_path / "current").symlink_to(source)
    dataset = upload_dataset(root, "cifar", tmp_path / "current", contents_only=False)
    assert sizes_of(root, dataset) == {"current/labels.txt": 8, "current/train/img[1].bin": 30}


@pytest.mark.parametrize("contents_only", [True, False])
def test_a_single_file_is_uploaded_under_its_name(root, source, contents_only):
    dataset = upload_dataset(root, "labels", source / "labels.txt", contents_only=contents_only)
    assert sizes_of(root, dataset) == {"labels.txt": 8}


def test_links_in_the_source_are_followed(root, source, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "test.bin").write_bytes(b"12345")
    (source / "test").symlink_to(tmp_path / "elsewhere")
    dataset = upload_dataset(root, "cifar", source, contents_only=True)
    assert sizes_of(root, dataset) == {"labels.txt": 8, "test/test.bin": 5, "train/img[1].bin": 30}


def test_an_upload_that_was_cut_short_is_invisible(root, source):
    upload_and_cut(root, "cifar", source)
    assert list_datasets(root) == []
    assert list_unfinished_uploads(root) == ["cifar"]
    with pytest.raises(NotFoundError):
        read_dataset(root, "cifar")
    delete_dataset(root, "cifar")
    assert list_unfinished_uploads(root) == []
    assert root.list_files("datasets") == {}


def test_an_upload_that_failed_goes_on_with_what_is_missing(root, source):
    upload_all_but(root, "cifar", source, "labels.txt")
    assert list_datasets(root) == []
    assert root.list_files("datasets/cifar/files") == {"train/img[1].bin": 30}
    progress = []
    dataset = upload_dataset(root, "cifar", source, contents_only=True, on_progress=lambda *step: progress.append(step))
    uploading = [step for step in progress if step[0] == "uploading"]
    assert (uploading[0], uploading[-1]) == (("uploading", 30, 38), ("uploading", 38, 38))
    assert sizes_of(root, dataset) == {"labels.txt": 8, "train/img[1].bin": 30}
    assert root.read_bytes("datasets/cifar/files/labels.txt") == b"cat\ndog\n"


def test_an_upload_goes_on_with_the_files_as_they_are_now(root, source):
    upload_all_but(root, "cifar", source, "train/img[1].bin")
    # As long as before, and one file fewer.
    (source / "labels.txt").write_text("cow\npig\n")
    (source / "train" / "img[1].bin").rename(source / "train" / "img[2].bin")
    upload_and_cut(root, "cifar", source)
    dataset = upload_dataset(root, "cifar", source, contents_only=True)
    assert sizes_of(root, dataset) == {"labels.txt": 8, "train/img[2].bin": 30}
    assert root.list_files("datasets/cifar/files") == {"labels.txt": 8, "train/img[2].bin": 30}
    assert root.read_bytes("datasets/cifar/files/labels.txt") == b"cow\npig\n"


def test_of_two_uploads_under_one_name_the_later_one_stays(root, source):
    began = []

    def begin_another(phase: str, num_bytes: int, total_bytes: int) -> None:
        if phase == "uploading" and not began:
            began.append(True)
            upload_and_cut(root, "cifar", source / "train")

    with pytest.raises(StorageError, match="another upload to 'datasets/cifar'"):
        upload_dataset(root, "cifar", source, contents_only=True, on_progress=begin_another)
    assert list_datasets(root) == []
    dataset = upload_dataset(root, "cifar", source / "train", contents_only=True)
    assert root.list_files("datasets/cifar/files") == sizes_of(root, dataset) == {"img[1].bin": 30}


def test_in_a_directory_the_stored_files_are_read_only(local_root, source):
    dataset = upload_dataset(local_root, "cifar", source, contents_only=True)
    files = Path(dataset.uri)
    for path in (files, files / "train", files / "labels.txt", files / "train" / "img[1].bin"):
        assert path.stat().st_mode & 0o222 == 0
    assert (source / "labels.txt").stat().st_mode & 0o200 == 0o200


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "-x", "a b", "é", "x" * 129])
def test_a_name_that_cannot_be_a_key_is_refused(root, source, name):
    with pytest.raises(UsageError) as caught:
        upload_dataset(root, name, source, contents_only=True)
    assert str(caught.value) == (
        f"dataset name {name!r} cannot be used: letters, digits, '.', '_' and '-', starting with a letter or digit."
    )


def test_a_name_is_used_once(root, source):
    first = upload_dataset(root, "cifar", source, contents_only=True)
    message = (
        "dataset 'cifar' already exists. Delete it first (periflow-ray datastore delete cifar) or choose another name."
    )
    for use_again in (
        lambda: upload_dataset(root, "cifar", source, contents_only=False),
        lambda: link_dataset(root, "cifar", str(source)),
    ):
        with pytest.raises(UsageError) as caught:
            use_again()
        assert str(caught.value) == message
    assert read_dataset(root, "cifar") == first


def test_a_source_without_files_is_refused(root, tmp_path):
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    for path, message in (
        (tmp_path / "nowhere", f"'{tmp_path}/nowhere' does not exist."),
        (tmp_path / "empty", f"'{tmp_path}/empty' has no files."),
    ):
        with pytest.raises(UsageError) as caught:
            upload_dataset(root, "cifar", path, contents_only=True)
        assert str(caught.value) == message
    assert list_datasets(root) == []


def test_what_cannot_be_kept_is_left_out_and_told(root, source, tmp_path):
    (source / "gone").symlink_to(tmp_path / "gone")
    os.mkfifo(source / "pipe")
    skipped = []
    dataset = upload_dataset(root, "cifar", source, contents_only=True, on_skipped=lambda *what: skipped.append(what))
    assert skipped == [(f"{source}/gone", "is a link to nothing"), (f"{source}/pipe", "is a pipe")]
    assert sizes_of(root, dataset) == {"labels.txt": 8, "train/img[1].bin": 30}


def test_a_linked_dataset_stays_where_it_is_also_when_it_is_deleted(root, source):
    dataset = link_dataset(root, "cifar", str(source), {"license": "MIT"})
    assert dataset == Dataset("cifar", str(source), dataset.created_unix_s, True, {"license": "MIT"})
    assert sizes_of(root, dataset) == {"labels.txt": 8, "train/img[1].bin": 30}
    assert read_dataset(root, "cifar") == dataset
    delete_dataset(root, "cifar")
    assert list_datasets(root) == []
    assert (source / "labels.txt").read_text() == "cat\ndog\n"


def test_a_linked_bucket_keeps_its_region_and_the_versions_of_its_files(root):
    bucket = StorageRoot("memory://images/pets")
    bucket.write_bytes("cats/1.png", b"cat")
    dataset = link_dataset(root, "pets", "memory://images/pets", region="us-east-2")
    assert (dataset.uri, dataset.region, dataset.credential) == ("memory://images/pets", "us-east-2", None)
    (before,) = list_dataset_files(root, dataset)
    assert (before.path, before.size, before.checksum) == ("cats/1.png", 3, None)
    bucket.write_bytes("cats/1.png", b"dog")
    assert list_dataset_files(root, dataset) != (before,)


def test_a_link_to_a_file_is_refused(root, source):
    with pytest.raises(UsageError) as caught:
        link_dataset(root, "labels", str(source / "labels.txt"))
    assert str(caught.value) == (f"'{source}/labels.txt' is a file. Link the directory that it is in, or upload it.")


def test_a_link_to_nothing_is_refused(root, tmp_path):
    with pytest.raises(NotFoundError) as caught:
        link_dataset(root, "cifar", str(tmp_path / "nowhere"))
    assert str(caught.value) == f"there is nothing at '{tmp_path}/nowhere'"
    with pytest.raises(StorageError):
        link_dataset(root, "cifar", "nfs4://server/export")


def test_deleting_an_uploaded_dataset_deletes_its_files_and_no_others(root, source):
    upload_dataset(root, "cifar", source, contents_only=True)
    upload_dataset(root, "cifar-100", source, contents_only=True)
    delete_dataset(root, "cifar")
    assert [dataset.name for dataset in list_datasets(root)] == ["cifar-100"]
    assert root.list_files("datasets/cifar") == {}
    with pytest.raises(NotFoundError) as caught:
        delete_dataset(root, "cifar")
    assert str(caught.value) == (
        f"dataset 'cifar' does not exist in storage root '{root.uri}'. Make it known: "
        "periflow-ray datastore upload -n cifar -p DIR"
    )


def test_a_manifest_that_is_not_the_datasets_own_is_noticed(root, source):
    dataset = upload_dataset(root, "cifar", source, contents_only=True)
    root.write_json("datasets/cifar/files.json", [])
    with pytest.raises(StorageError, match=r"dataset 'cifar' in storage root '.*' is damaged"):
        list_dataset_files(root, dataset)


def test_an_uploaded_dataset_gets_another_name_and_other_metadata(root, source):
    before = upload_dataset(root, "cifar", source, contents_only=True)
    after = edit_dataset(root, "cifar", new_name="cifar-10", metadata={"classes": 10})
    assert after == Dataset(
        name="cifar-10",
        uri=f"{root.uri}/datasets/cifar-10/files",
        created_unix_s=before.created_unix_s,
        is_linked=False,
        metadata={"classes": 10},
        num_files=2,
        size_bytes=38,
        content_id=before.content_id,
        has_entries=True,
    )
    assert list_datasets(root) == [after]
    assert root.list_files("datasets/cifar") == {}
    assert sizes_of(root, after) == root.list_files("datasets/cifar-10/files")
    if root.is_local:
        assert os.stat(f"{after.uri}/labels.txt").st_mode & 0o222 == 0


def test_a_linked_dataset_is_edited_where_it_is(root, source):
    link_dataset(root, "cifar", str(source), {"license": "MIT"})
    edited = edit_dataset(root, "cifar", region="eastus")
    assert (edited.name, edited.region, edited.metadata) == ("cifar", "eastus", {"license": "MIT"})
    assert read_dataset(root, "cifar") == edited
    renamed = edit_dataset(root, "cifar", new_name="other")
    assert list_datasets(root) == [renamed]
    assert (renamed.name, renamed.uri) == ("other", str(source))


def test_edits_that_make_no_sense_change_nothing(root, source):
    dataset = upload_dataset(root, "cifar", source, contents_only=True)
    other = link_dataset(root, "other", str(source))
    with pytest.raises(UsageError, match="only a linked one has a region"):
        edit_dataset(root, "cifar", region="eastus")
    with pytest.raises(UsageError, match="dataset 'other' already exists"):
        edit_dataset(root, "cifar", new_name="other")
    with pytest.raises(NotFoundError):
        edit_dataset(root, "nothing", metadata={})
    assert list_datasets(root) == [dataset, other]
