from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from support.trees import read_tree

from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.runtime.command_jobs.data_mount import mount_dataset
from periflow_ray.spec.models import DataSpec
from periflow_ray.store.datasets import delete_dataset, link_dataset, upload_dataset
from periflow_ray.store.datasets.cache import DatasetCache
from periflow_ray.store.datasets.huggingface import Part
from periflow_ray.store.datasets.local import open_dataset
from periflow_ray.store.root import StorageRoot

# Stands for the package of Hugging Face, of which only these two functions are used.
FAKE_DATASETS = """
from pathlib import Path

class Loaded:
    def __init__(self, name):
        self.name = name

    def save_to_disk(self, directory):
        Path(directory, "train").mkdir(parents=True)
        Path(directory, "train", "data.arrow").write_text(self.name)

def load_dataset(path, name=None, *, split=None, revision=None):
    if path == "org/gone":
        raise ConnectionError("the hub cannot be reached\\nand a long explanation")
    return Loaded(" ".join(filter(None, [path, name, split, revision])))
"""


@pytest.fixture
def cache(tmp_path: Path) -> DatasetCache:
    return DatasetCache(tmp_path / "cache", 1000)


@pytest.fixture
def bucket() -> Iterator[StorageRoot]:
    """A bucket with two files, which stands for every storage that is not local."""
    bucket = StorageRoot("memory://images/pets")
    bucket.write_bytes("labels.txt", b"cat\ndog\n")
    bucket.write_bytes("train/img[1].bin", b"\0" * 30)
    yield bucket
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


@pytest.fixture
def memory_root(bucket: StorageRoot) -> StorageRoot:
    """A storage root that is not local."""
    return StorageRoot("memory://bucket/storage")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "cifar" / "train").mkdir(parents=True)
    (tmp_path / "cifar" / "labels.txt").write_text("cat\ndog\n")
    (tmp_path / "cifar" / "train" / "img[1].bin").write_bytes(b"\0" * 30)
    return tmp_path / "cifar"


CONTENTS = {"labels.txt": b"cat\ndog\n", "train/img[1].bin": b"\0" * 30}


def test_files_in_a_directory_are_used_where_they_are(local_root, source, cache):
    uploaded = upload_dataset(local_root, "uploaded", source, contents_only=True)
    linked = link_dataset(local_root, "linked", str(source))
    for dataset in (uploaded, linked):
        opened = open_dataset(local_root, dataset.name, cache=cache)
        assert (opened.path, opened.is_in_place) == (Path(dataset.uri), True)
        assert read_tree(opened.path) == CONTENTS
    assert not cache.directory.exists()
    # The user's own directory keeps its permissions.
    assert os.access(source / "labels.txt", os.W_OK)


def test_a_directory_that_this_machine_does_not_have_is_named(local_root, source, cache):
    link_dataset(local_root, "linked", str(source))
    source.rename(source.with_name("elsewhere"))
    with pytest.raises(NotFoundError, match=f"dataset 'linked' is the directory {source}, which does not exist on"):
        open_dataset(local_root, "linked", cache=cache)


def test_files_that_are_elsewhere_are_fetched_once(memory_root, source, cache):
    upload_dataset(memory_root, "uploaded", source, contents_only=True)
    link_dataset(memory_root, "linked", "memory://images/pets")
    for name in ("uploaded", "linked"):
        fetched, notices = [], []
        opened = open_dataset(memory_root, name, cache=cache, on_bytes=fetched.append, on_note=notices.append)
        assert read_tree(opened.path) == CONTENTS
        assert not opened.is_in_place
        assert (sum(fetched), notices) == (38, [f"fetches dataset '{name}': 2 files, 38 bytes"])
        again = open_dataset(memory_root, name, cache=cache, on_bytes=fetched.append)
        assert (again.path, sum(fetched)) == (opened.path, 38)


def test_a_bucket_that_changes_is_fetched_again(memory_root, bucket, cache):
    link_dataset(memory_root, "pets", bucket.uri)
    before = open_dataset(memory_root, "pets", cache=cache)
    bucket.write_bytes("labels.txt", b"cow\npig\n")
    after = open_dataset(memory_root, "pets", cache=cache)
    assert (after.path / "labels.txt").read_bytes() == b"cow\npig\n"
    # Who uses the one from before goes on with it.
    assert (before.path / "labels.txt").read_bytes() == b"cat\ndog\n"


def test_a_dataset_that_is_uploaded_anew_is_fetched_again_unless_it_is_the_same(memory_root, source, cache):
    upload_dataset(memory_root, "cifar", source, contents_only=True)
    before = open_dataset(memory_root, "cifar", cache=cache)
    delete_dataset(memory_root, "cifar")
    upload_dataset(memory_root, "cifar", source, contents_only=True)
    assert open_dataset(memory_root, "cifar", cache=cache).path == before.path
    delete_dataset(memory_root, "cifar")
    (source / "labels.txt").write_text("cow\npig\n")
    upload_dataset(memory_root, "cifar", source, contents_only=True)
    after = open_dataset(memory_root, "cifar", cache=cache)
    assert (after.path / "labels.txt").read_bytes() == b"cow\npig\n"


def test_a_stored_file_that_is_damaged_is_not_used(memory_root, source, cache):
    upload_dataset(memory_root, "cifar", source, contents_only=True)
    memory_root.write_bytes("datasets/cifar/files/labels.txt", b"cat\ndoh\n")
    with pytest.raises(StorageError, match=r"datasets/cifar/files/labels\.txt"):
        open_dataset(memory_root, "cifar", cache=cache)
    assert os.listdir(cache.directory / "entries") == []
    memory_root.write_bytes("datasets/cifar/files/labels.txt", b"cat\ndog\n")
    assert read_tree(open_dataset(memory_root, "cifar", cache=cache).path) == CONTENTS


def test_a_bucket_that_has_become_empty_is_an_error(memory_root, bucket, cache):
    link_dataset(memory_root, "pets", bucket.uri)
    for key in CONTENTS:
        bucket.delete(key)
    with pytest.raises(NotFoundError) as caught:
        open_dataset(memory_root, "pets", cache=cache)
    assert str(caught.value) == "dataset 'pets' has no files: there is nothing at 'memory://images/pets'"


def test_an_unknown_dataset_is_an_error(memory_root, cache):
    with pytest.raises(NotFoundError, match="dataset 'nothing' does not exist"):
        open_dataset(memory_root, "nothing", cache=cache)


@pytest.fixture
def _fake_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "datasets.py").write_text(FAKE_DATASETS)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    yield
    sys.modules.pop("datasets", None)


@pytest.mark.usefixtures("_fake_datasets")
def test_a_hugging_face_dataset_is_saved_once_for_load_from_disk(local_root, cache, monkeypatch):
    opened = open_dataset(local_root, "huggingface:org/squad", cache=cache)
    assert read_tree(opened.path) == {"train/data.arrow": b"org/squad"}
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert open_dataset(local_root, "huggingface:org/squad", cache=cache).path == opened.path


@pytest.mark.usefixtures("_fake_datasets")
def test_each_part_of_a_hugging_face_dataset_is_a_copy_of_its_own(local_root, cache):
    texts = {
        Part(): "wiki",
        Part(config="raw"): "wiki raw",
        Part(split="train[:10%]"): "wiki train[:10%]",
        Part(revision="raw"): "wiki raw",
        Part("raw", "train", "v1"): "wiki raw train v1",
    }
    paths = set()
    for part, text in texts.items():
        opened = open_dataset(local_root, "huggingface:wiki", part, cache=cache)
        assert read_tree(opened.path) == {"train/data.arrow": text.encode()}
        paths.add(opened.path)
        opened.close()
    assert len(paths) == len(texts)


@pytest.mark.usefixtures("_fake_datasets")
def test_a_job_gets_the_part_that_its_template_names(local_root, tmp_path, monkeypatch):
    monkeypatch.setenv("PERIFLOW_CACHE_DIR", str(tmp_path / "cache"))
    data = DataSpec(name="huggingface:wiki", mount_path="/data", config="raw", split="test", revision="v1")
    mount = mount_dataset(local_root, data, tmp_path / "data")
    assert (tmp_path / "data" / "train" / "data.arrow").read_text() == "wiki raw test v1"
    mount.close()


@pytest.mark.usefixtures("_fake_datasets")
def test_a_part_that_cannot_be_loaded_is_named(local_root, cache):
    with pytest.raises(StorageError) as caught:
        open_dataset(local_root, "huggingface:org/gone", Part("raw", revision="v1"), cache=cache)
    assert str(caught.value) == (
        "Hugging Face dataset 'org/gone (config raw, revision v1)' cannot be loaded: ConnectionError: the hub cannot "
        "be reached"
    )


@pytest.mark.usefixtures("_fake_datasets")
def test_a_hub_that_cannot_be_reached_is_one_line(local_root, cache):
    with pytest.raises(StorageError) as caught:
        open_dataset(local_root, "huggingface:org/gone", cache=cache)
    assert str(caught.value) == (
        "Hugging Face dataset 'org/gone' cannot be loaded: ConnectionError: the hub cannot be reached"
    )
    assert os.listdir(cache.directory / "entries") == []


def test_without_the_package_the_error_says_what_to_install(local_root, cache, monkeypatch):
    # None in sys.modules is how Python itself marks a module that cannot be imported.
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(StorageError) as caught:
        open_dataset(local_root, "huggingface:squad", cache=cache)
    assert str(caught.value) == (
        "Hugging Face dataset 'squad' needs the package 'datasets' on every node: pip install datasets"
    )
