"""Datasets of many small files, in a storage root that is not a directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from support.trees import read_tree

from periflow_ray.errors import StorageError, UsageError
from periflow_ray.store.datasets import edit_dataset, list_dataset_files, list_datasets, locate_dataset, upload_dataset
from periflow_ray.store.datasets.cache import DatasetCache
from periflow_ray.store.datasets.files import dump_files, identify_content
from periflow_ray.store.datasets.local import open_dataset
from periflow_ray.store.datasets.packs import MAX_PACKED_FILE_BYTES, PACK_BYTES, open_packed
from periflow_ray.store.datasets.records import read_dataset
from periflow_ray.store.root import StorageRoot

NUM_SMALL = 120


@pytest.fixture
def memory_root() -> Iterator[StorageRoot]:
    yield StorageRoot("memory://bucket/storage")
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Small files, an empty one among them, and one that is too large for a pack."""
    directory = tmp_path / "images"
    for number in range(NUM_SMALL):
        (directory / f"class-{number % 3}").mkdir(parents=True, exist_ok=True)
        (directory / f"class-{number % 3}" / f"{number:03}.bin").write_bytes(b"%d" % number * number)
    (directory / "class-1" / "large.bin").write_bytes(b"x" * (MAX_PACKED_FILE_BYTES + 1))
    return directory


@pytest.fixture
def cache(tmp_path: Path) -> DatasetCache:
    return DatasetCache(tmp_path / "cache", 10 << 20)


def packs_of(root: StorageRoot) -> list[str]:
    return root.list_names("datasets/images/packs")


def test_small_files_are_stored_together_and_fetched_as_they_were(memory_root, source, cache):
    sent, fetched = [], []
    dataset = upload_dataset(
        memory_root, "images", source, contents_only=True, on_progress=lambda *step: sent.append(step)
    )
    assert (dataset.num_files, len(packs_of(memory_root))) == (NUM_SMALL + 1, 1)
    assert list(memory_root.list_files("datasets/images/files")) == ["class-1/large.bin"]
    assert sent[-1] == ("uploading", dataset.size_bytes, dataset.size_bytes)
    opened = open_dataset(memory_root, "images", cache=cache, on_bytes=fetched.append)
    assert read_tree(opened.path) == read_tree(source)
    assert sum(fetched) == dataset.size_bytes


def test_the_content_is_the_same_packed_or_not(memory_root, local_root, source):
    packed = upload_dataset(memory_root, "images", source, contents_only=True)
    loose = upload_dataset(local_root, "images", source, contents_only=True)
    assert packed.content_id == loose.content_id
    assert read_tree(Path(loose.uri)) == read_tree(source)
    assert packs_of(local_root) == []


def test_a_pack_has_a_bounded_size(memory_root, tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(100):
        (tmp_path / "images" / f"{number:03}").write_bytes(b"x" * 200_000)
    upload_dataset(memory_root, "images", tmp_path / "images", contents_only=True)
    sizes = list(memory_root.list_files("datasets/images/packs").values())
    assert (len(sizes), sum(sizes)) == (3, 20_000_000)
    assert max(sizes) <= PACK_BYTES


def test_packs_that_are_stored_are_not_sent_again(memory_root, source):
    large_bytes = MAX_PACKED_FILE_BYTES + 2

    def change(phase: str, num_bytes: int, total_bytes: int) -> None:
        if phase == "uploading":
            (source / "class-1" / "large.bin").write_bytes(b"y" * large_bytes)

    with pytest.raises(UsageError, match="changed while the dataset was uploaded"):
        upload_dataset(memory_root, "images", source, contents_only=True, on_progress=change)
    assert list_datasets(memory_root) == []
    sent = []
    dataset = upload_dataset(
        memory_root, "images", source, contents_only=True, on_progress=lambda *step: sent.append(step)
    )
    first = next(step for step in sent if step[0] == "uploading")
    assert first == ("uploading", dataset.size_bytes - large_bytes, dataset.size_bytes)


def test_a_small_file_that_changes_while_it_is_uploaded_is_noticed(memory_root, source, cache):
    def change(phase: str, num_bytes: int, total_bytes: int) -> None:
        if phase == "uploading":
            (source / "class-1" / "001.bin").write_text("2")

    with pytest.raises(UsageError, match="changed while the dataset was uploaded"):
        upload_dataset(memory_root, "images", source, contents_only=True, on_progress=change)
    assert packs_of(memory_root) == []
    upload_dataset(memory_root, "images", source, contents_only=True)
    assert read_tree(open_dataset(memory_root, "images", cache=cache).path) == read_tree(source)


def test_a_damaged_pack_names_the_file_and_the_rest_stays_for_the_next_try(memory_root, source, cache):
    upload_dataset(memory_root, "images", source, contents_only=True)
    (name,) = packs_of(memory_root)
    content = memory_root.read_bytes(f"datasets/images/packs/{name}")
    memory_root.write_bytes(f"datasets/images/packs/{name}", content[:-1] + b"?")
    with pytest.raises(StorageError, match=r"is damaged: the checksum of 'class-2/119\.bin' in it is xxh3_128:"):
        open_dataset(memory_root, "images", cache=cache)
    memory_root.write_bytes(f"datasets/images/packs/{name}", content)
    assert read_tree(open_dataset(memory_root, "images", cache=cache).path) == read_tree(source)


def test_what_a_killed_fetch_left_half_written_does_not_appear(memory_root, source, cache):
    upload_dataset(memory_root, "images", source, contents_only=True)
    use = open_dataset(memory_root, "images", cache=cache)
    use.close()
    entry = use.path.parent
    partial = cache.directory / "partial" / entry.name
    # As if it had never been completed.
    entry.rename(partial)
    (partial / "files").chmod(0o755)
    (partial / "files" / ".labels.txt.0123abcd.partial").write_text("half")
    assert read_tree(open_dataset(memory_root, "images", cache=cache).path) == read_tree(source)


def test_packs_move_with_the_dataset_to_its_new_name(memory_root, source, cache):
    upload_dataset(memory_root, "pets", source, contents_only=True)
    edit_dataset(memory_root, "pets", new_name="images")
    assert read_tree(open_dataset(memory_root, "images", cache=cache).path) == read_tree(source)
    assert memory_root.list_files("datasets/pets") == {}


def test_packed_files_are_read_in_place_by_their_paths(memory_root, source):
    dataset = upload_dataset(memory_root, "images", source, contents_only=True)
    place, prefix = locate_dataset(memory_root, dataset)
    packed = open_packed(place, prefix, list_dataset_files(memory_root, dataset))
    for path in ("class-1/001.bin", "class-2/119.bin", "class-1/large.bin"):
        assert packed.get_file_info(path).size == (source / path).stat().st_size
        with packed.open_input_file(path) as file:
            assert file.read() == (source / path).read_bytes()


@pytest.mark.parametrize("path", ["../escaped", "/etc/cron.d/escaped", "a/../../escaped", "a//b", ""])
@pytest.mark.parametrize("where", ["path", "pack"])
def test_a_stored_list_of_files_names_no_place_outside(memory_root, source, cache, tmp_path, path, where):
    upload_dataset(memory_root, "images", source, contents_only=True)
    files = list(list_dataset_files(memory_root, read_dataset(memory_root, "images")))
    files[0] = dataclasses.replace(files[0], **{where: path})
    memory_root.write_json("datasets/images/files.json", dump_files(files))
    record = memory_root.read_json("datasets/images/dataset.json")
    memory_root.write_json("datasets/images/dataset.json", {**record, "content_id": identify_content(files)})
    with pytest.raises(StorageError, match="which does not stay inside the dataset's directory"):
        open_dataset(memory_root, "images", cache=cache)
    assert not list(tmp_path.rglob("escaped"))
