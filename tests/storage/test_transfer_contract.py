"""What moving files promises, the same on every kind of storage."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support.trees import read_tree

from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.store.checksum import checksum_file
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import DownloadItem, Transfer, UploadItem

# The smallest part that S3 allows.
PART_BYTES = 5 << 20
SIZES = (0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 7)


class ByteCount:
    """Adds up what ``on_bytes`` is told."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def add(self, num_bytes: int) -> None:
        self.told.append(num_bytes)


def write_files(directory: Path, sizes: dict[str, int]) -> dict[str, bytes]:
    directory.mkdir()
    contents = {name: random.Random(name).randbytes(size) for name, size in sizes.items()}
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    return contents


def upload(root: StorageRoot, source: Path) -> None:
    Transfer(root, part_bytes=PART_BYTES).upload_files([UploadItem(source, "key")])


def describe_download(source: Path, target: Path) -> DownloadItem:
    return DownloadItem("key", target, source.stat().st_size, checksum_file(source))


def test_files_of_every_size_come_back_as_they_went(any_root, tmp_path):
    contents = write_files(tmp_path / "source", {str(size): size for size in SIZES})
    uploaded, downloaded = ByteCount(), ByteCount()
    Transfer(any_root, num_workers=3, part_bytes=PART_BYTES, on_bytes=uploaded.add).upload_files(
        [UploadItem(tmp_path / "source" / name, f"a/{name}") for name in contents]
    )
    assert any_root.list_files("") == {f"a/{size}": size for size in SIZES}
    Transfer(any_root, num_workers=3, part_bytes=PART_BYTES, on_bytes=downloaded.add).download_files(
        [
            DownloadItem(
                f"a/{name}", tmp_path / "target" / name, len(content), checksum_file(tmp_path / "source" / name)
            )
            for name, content in contents.items()
        ]
    )
    assert read_tree(tmp_path / "target") == contents
    assert (sum(uploaded.told), sum(downloaded.told)) == (sum(SIZES), sum(SIZES))


def test_many_small_files_come_back_as_they_went(any_root, tmp_path):
    contents = write_files(tmp_path / "source", {f"{number:03}.pt": number for number in range(200)})
    transfer = Transfer(any_root)
    transfer.upload_files(
        [
            UploadItem(tmp_path / "source" / name, f"a/{number % 7}/{name}", is_immutable=number % 2 == 0)
            for number, name in enumerate(contents)
        ]
    )
    transfer.download_files(
        [
            DownloadItem(f"a/{number % 7}/{name}", tmp_path / "target" / name, len(content))
            for number, (name, content) in enumerate(contents.items())
        ]
    )
    assert read_tree(tmp_path / "target") == contents


def test_an_upload_replaces_what_was_there(any_root, tmp_path):
    for size in (PART_BYTES + 1, 3, PART_BYTES + 2):
        source = tmp_path / "model.pt"
        source.write_bytes(random.Random(size).randbytes(size))
        upload(any_root, source)
        assert any_root.read_bytes("key") == source.read_bytes()
    assert any_root.list_files("") == {"key": PART_BYTES + 2}


def test_a_source_that_is_not_there_leaves_the_key_as_it_was(any_root, tmp_path):
    any_root.write_bytes("key", b"old")
    with pytest.raises(OSError):
        upload(any_root, tmp_path / "missing")
    assert any_root.read_bytes("key") == b"old"
    assert any_root.list_files("") == {"key": 3}


def test_a_key_that_is_not_there_leaves_the_target_as_it_was(any_root, tmp_path):
    target = tmp_path / "target" / "model.pt"
    target.parent.mkdir()
    target.write_bytes(b"old")
    with pytest.raises(NotFoundError):
        Transfer(any_root).download_files([DownloadItem("missing", target, 5, f"xxh3_128:{'0' * 32}")])
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("size", [100, PART_BYTES + 1])
def test_damaged_content_is_refused_with_both_checksums(any_root, tmp_path, size):
    source, target = tmp_path / "model.pt", tmp_path / "target" / "model.pt"
    source.write_bytes(bytes(size))
    item = describe_download(source, target)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(bytes(size - 1) + b"\1")
    upload(any_root, damaged)
    with pytest.raises(StorageError) as caught:
        Transfer(any_root, part_bytes=PART_BYTES).download_files([item])
    for word in ("'key'", any_root.uri, item.checksum, checksum_file(damaged)):
        assert word in str(caught.value)
    assert read_tree(target.parent) == {}
    upload(any_root, source)
    Transfer(any_root, part_bytes=PART_BYTES).download_files([item])
    assert read_tree(target.parent) == {"model.pt": bytes(size)}


@pytest.mark.parametrize("size", [99, 101])
def test_a_key_of_another_size_is_refused(any_root, tmp_path, size):
    source, target = tmp_path / "model.pt", tmp_path / "target" / "model.pt"
    source.write_bytes(bytes(100))
    item = describe_download(source, target)
    any_root.write_bytes("key", bytes(size))
    with pytest.raises(StorageError):
        Transfer(any_root).download_files([item])
    assert not target.exists()


def test_a_target_that_is_right_already_is_left_alone(any_root, tmp_path):
    source, target = tmp_path / "model.pt", tmp_path / "target" / "model.pt"
    source.write_bytes(random.Random(0).randbytes(PART_BYTES + 1))
    upload(any_root, source)
    item = describe_download(source, target)
    Transfer(any_root).download_files([item])
    before = target.stat()
    Transfer(any_root).download_files([item])
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    target.write_bytes(b"changed")
    Transfer(any_root).download_files([item])
    assert target.read_bytes() == source.read_bytes()


def test_after_a_failure_the_same_transfer_moves_other_files(any_root, tmp_path):
    any_root.write_bytes("key", b"content")
    transfer = Transfer(any_root)
    with pytest.raises(NotFoundError):
        transfer.download_files([DownloadItem("missing", tmp_path / "a", 5)])
    transfer.download_files([DownloadItem("key", tmp_path / "b", 7)])
    transfer.upload_files([UploadItem(tmp_path / "b", "copy")])
    assert any_root.read_bytes("copy") == b"content"
