from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.runtime.command_jobs.data_mount import mount_dataset
from periflow_ray.spec.models import DataSpec
from periflow_ray.store.datasets import link_dataset, upload_dataset
from periflow_ray.store.root import StorageRoot


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PERIFLOW_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PERIFLOW_CACHE_MAX_BYTES", "10")
    return tmp_path / "cache"


@pytest.fixture
def bucket_root() -> Iterator[StorageRoot]:
    """A storage root that is not local."""
    yield StorageRoot("memory://bucket/storage")
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "train").write_bytes(b"images")
    return tmp_path / "cifar"


DATA = DataSpec(name="cifar", mount_path="/workspace/data")


def test_a_fetched_dataset_appears_at_the_mount_path_of_every_node(bucket_root, source, cache_dir, tmp_path):
    upload_dataset(bucket_root, "cifar", source, contents_only=True)
    notices = []
    mounts = [
        mount_dataset(bucket_root, DATA, tmp_path / f"node-{rank}" / "workspace" / "data", on_note=notices.append)
        for rank in range(2)
    ]
    assert notices == ["fetches dataset 'cifar': 1 files, 6 bytes"]
    for mount in mounts:
        assert (mount.target / "train").read_bytes() == b"images"
        assert (mount.target / "train").stat().st_mode & 0o222 == 0
        assert mount.source.is_relative_to(cache_dir)


def test_a_dataset_in_a_directory_is_linked_where_it_is(tmp_path, source):
    root = StorageRoot(str(tmp_path / "storage"))
    link_dataset(root, "cifar", str(source))
    mount = mount_dataset(root, DATA, tmp_path / "node-0" / "data")
    assert (mount.source, mount.target.readlink()) == (source, source)
    mount.close()
    assert not mount.target.is_symlink()
    assert (source / "train").read_bytes() == b"images"


def test_the_cache_keeps_a_mounted_dataset_and_drops_it_after(bucket_root, source, cache_dir, tmp_path):
    upload_dataset(bucket_root, "cifar", source, contents_only=True)
    upload_dataset(bucket_root, "other", source, contents_only=False)
    mount = mount_dataset(bucket_root, DATA, tmp_path / "node-0" / "data")
    other = DataSpec(name="other", mount_path="/workspace/data")
    with pytest.raises(StorageError, match="running jobs use 6 of them"):
        mount_dataset(bucket_root, other, tmp_path / "node-1" / "data")
    assert not (tmp_path / "node-1" / "data").is_symlink()
    mount.close()
    assert (mount_dataset(bucket_root, other, tmp_path / "node-1" / "data").target / "cifar" / "train").is_file()
    assert not mount.source.exists()


def test_a_later_attempt_replaces_the_link_of_an_earlier_one(bucket_root, source, tmp_path):
    upload_dataset(bucket_root, "cifar", source, contents_only=True)
    target = tmp_path / "node-0" / "data"
    target.parent.mkdir()
    target.symlink_to(tmp_path / "gone")
    mount_dataset(bucket_root, DATA, target)
    assert (target / "train").read_bytes() == b"images"


def test_an_empty_directory_gives_way_and_anything_else_is_an_error(bucket_root, source, tmp_path):
    upload_dataset(bucket_root, "cifar", source, contents_only=True)
    target = tmp_path / "node-0" / "data"
    target.mkdir(parents=True)
    mount_dataset(bucket_root, DATA, target).close()
    target.mkdir()
    (target / "main.py").touch()
    with pytest.raises(StorageError) as caught:
        mount_dataset(bucket_root, DATA, target)
    assert str(caught.value) == (
        f"the dataset cannot appear at '{target}': there is something else already. Give data.mount_path a path of "
        "its own."
    )
    assert (target / "main.py").is_file()


def test_an_unknown_dataset_is_an_error(bucket_root, tmp_path):
    with pytest.raises(NotFoundError, match="dataset 'cifar' does not exist"):
        mount_dataset(bucket_root, DATA, tmp_path / "data")
