from __future__ import annotations

import time
from pathlib import Path

import pytest

from periflow_ray.errors import NotFoundError, StorageError, UsageError
from periflow_ray.store.datasets import (
    Dataset,
    delete_dataset,
    fetch_dataset,
    link_dataset,
    list_dataset_files,
    list_datasets,
    read_dataset,
    upload_dataset,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "cifar"
    (directory / "train").mkdir(parents=True)
    (directory / "labels.txt").write_text("cat\ndog\n")
    (directory / "train" / "img[1].bin").write_bytes(b"\0" * 30)
    return directory


def test_a_directory_is_uploaded_under_its_name(root, source):
    sent = []
    before_unix_s = time.time()
    dataset = upload_dataset(
        root,
        "cifar-10",
        source,
        contents_only=False,
        metadata={"classes": 2},
        on_file=lambda path, size: sent.append((path, size)),
    )
    assert sent == [("cifar/labels.txt", 8), ("cifar/train/img[1].bin", 30)]
    assert list_dataset_files(root, dataset) == {"cifar/labels.txt": 8, "cifar/train/img[1].bin": 30}
    uri = root.path_of("datasets/cifar-10/files")
    assert dataset == Dataset("cifar-10", uri, dataset.created_unix_s, False, {"classes": 2})
    assert before_unix_s <= dataset.created_unix_s <= time.time()
    assert read_dataset(root, "cifar-10") == dataset
    assert list_datasets(root) == [dataset]


def test_a_trailing_slash_uploads_the_contents_only(root, source):
    dataset = upload_dataset(root, "cifar", source, contents_only=True)
    assert list_dataset_files(root, dataset) == {"labels.txt": 8, "train/img[1].bin": 30}


def test_the_working_directory_is_uploaded_under_its_own_name(root, source, monkeypatch):
    monkeypatch.chdir(source)
    dataset = upload_dataset(root, "cifar", Path("."), contents_only=False)
    assert list_dataset_files(root, dataset) == {"cifar/labels.txt": 8, "cifar/train/img[1].bin": 30}


def test_a_link_to_a_directory_is_uploaded_under_the_links_name(root, source, tmp_path):
    (tmp_path / "current").symlink_to(source)
    dataset = upload_dataset(root, "cifar", tmp_path / "current", contents_only=False)
    assert list_dataset_files(root, dataset) == {"current/labels.txt": 8, "current/train/img[1].bin": 30}


@pytest.mark.parametrize("contents_only", [True, False])
def test_a_single_file_is_uploaded_under_its_name(root, source, contents_only):
    dataset = upload_dataset(root, "labels", source / "labels.txt", contents_only=contents_only)
    assert list_dataset_files(root, dataset) == {"labels.txt": 8}


def test_an_upload_that_was_cut_short_is_invisible_and_leaves_nothing_in_the_next_one(root, source, tmp_path):
    def cut(path: str, size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload_dataset(root, "cifar", source, contents_only=True, on_file=cut)
    assert root.list_files("datasets/cifar") == {"files/labels.txt": 8}
    assert list_datasets(root) == []
    with pytest.raises(NotFoundError):
        read_dataset(root, "cifar")
    dataset = upload_dataset(root, "cifar", source / "train", contents_only=True)
    assert list_dataset_files(root, dataset) == {"img[1].bin": 30}


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


def test_a_source_that_does_not_exist_is_refused(root, tmp_path):
    with pytest.raises(UsageError) as caught:
        upload_dataset(root, "cifar", tmp_path / "nowhere", contents_only=True)
    assert str(caught.value) == f"'{tmp_path}/nowhere' does not exist."
    assert list_datasets(root) == []


def test_a_linked_dataset_stays_where_it_is_also_when_it_is_deleted(root, source):
    dataset = link_dataset(root, "cifar", str(source), {"license": "MIT"})
    assert dataset == Dataset("cifar", str(source), dataset.created_unix_s, True, {"license": "MIT"})
    assert list_dataset_files(root, dataset) == {"labels.txt": 8, "train/img[1].bin": 30}
    delete_dataset(root, "cifar")
    assert list_datasets(root) == []
    assert (source / "labels.txt").read_text() == "cat\ndog\n"


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


def test_a_dataset_appears_at_the_path_a_job_asks_for(root, source, tmp_path):
    uploaded = upload_dataset(root, "cifar", source, contents_only=True)
    linked = link_dataset(root, "linked", str(source))
    for dataset in (uploaded, linked):
        target = tmp_path / "workspace" / dataset.name
        fetch_dataset(root, dataset, target)
        assert (target / "labels.txt").read_text() == "cat\ndog\n"
        assert (target / "train" / "img[1].bin").read_bytes() == b"\0" * 30
    assert (tmp_path / "workspace" / "linked").is_symlink()
    assert (tmp_path / "workspace" / "cifar").is_symlink() == root.is_local
