"""Many small files as few objects of a storage root: a request costs a server and its client as much as 100 kB do.

A pack is the contents of files, one after the other; the manifest says which file is where. Its name is a digest of
what is in it, so that a pack that is stored already is known again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import fsspec

from periflow_ray.errors import StorageError
from periflow_ray.store.checksum import checksum_bytes
from periflow_ray.store.datasets.files import DatasetFile, SourceFile, describe_change, identify_content
from periflow_ray.store.local_files import write_whole
from periflow_ray.store.root import StorageRoot

# A few files stay files that other tools find in the bucket.
MIN_PACKED_FILES = 100
MAX_PACKED_FILE_BYTES = 1 << 20
PACK_BYTES = 8 << 20
# Bounds the memory, together with PACK_BYTES.
_NUM_WORKERS = 8


def plan_packs(described: Sequence[SourceFile]) -> tuple[SourceFile, ...]:
    """Say of each small file which pack it goes to and where in it; few small files, and large ones, stay files."""
    small = [one for one in described if one.file.size <= MAX_PACKED_FILE_BYTES]
    if len(small) < MIN_PACKED_FILES:
        return tuple(described)
    packed = {}
    for group in _group(small):
        name = identify_content([one.file for one in group])[:32]
        offset = 0
        for one in group:
            file = dataclasses.replace(one.file, pack=name, offset=offset)
            packed[file.path] = dataclasses.replace(one, file=file)
            offset += file.size
    return tuple(packed.get(one.file.path, one) for one in described)


def upload_packs(root: StorageRoot, prefix: str, packed: Sequence[SourceFile], on_bytes: Callable[[int], None]) -> None:
    """Store packs below ``<prefix>/packs``.

    Args:
        packed: all files of each pack.
        on_bytes: called with the size of each pack when it is stored, from any thread.
    Raises:
        UsageError: a source changed since it was described.
    """

    def upload(members: list[SourceFile]) -> None:
        content = b"".join(map(_read, members))
        root.write_bytes(f"{prefix}/packs/{members[0].file.pack}", content)
        on_bytes(len(content))

    packs = groupby(packed, key=lambda one: one.file.pack)
    with ThreadPoolExecutor(_NUM_WORKERS) as pool:
        list(pool.map(upload, [list(members) for _, members in packs]))


def download_packs(
    root: StorageRoot,
    prefix: str,
    packed: Sequence[DatasetFile],
    directory: Path,
    on_bytes: Callable[[int], None],
) -> None:
    """Put the files of packs below a directory, verified; those that an earlier call put there are not fetched again.

    Args:
        packed: all files of each pack.
        on_bytes: called with the size of each pack when its files are there, from any thread.
    Raises:
        NotFoundError: a pack does not exist.
        StorageError: a file differs from its checksum.
    """

    def download(members: list[DatasetFile]) -> None:
        if not all(_is_there(file, directory) for file in members):
            key = f"{prefix}/packs/{members[0].pack}"
            content = root.read_bytes(key)
            for file in members:
                _unpack(file, content, f"'{key}' in storage root '{root.uri}'", directory)
        on_bytes(sum(file.size for file in members))

    packs = groupby(packed, key=lambda file: file.pack)
    with ThreadPoolExecutor(_NUM_WORKERS) as pool:
        list(pool.map(download, [list(members) for _, members in packs]))


def open_packed(root: StorageRoot, prefix: str, files: Sequence[DatasetFile]) -> Any:
    """A file system for pyarrow and Ray Data that has the files under their paths, read from packs and files alike."""
    import pyarrow.fs

    places = {file.path: [root.path_of(f"{prefix}/{file.stored_key}"), file.offset or 0, file.size] for file in files}
    # Each dataset is a file system of its own; fsspec would look for an equal one by comparing all of this.
    packed = fsspec.filesystem("reference", fo=places, fs=root.filesystem, skip_instance_cache=True)
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(packed))


def _group(small: Sequence[SourceFile]) -> Iterator[list[SourceFile]]:
    group: list[SourceFile] = []
    num_bytes = 0
    for one in small:
        if group and num_bytes + one.file.size > PACK_BYTES:
            yield group
            group, num_bytes = [], 0
        group.append(one)
        num_bytes += one.file.size
    yield group


def _read(one: SourceFile) -> bytes:
    content = one.source.read_bytes()
    # A pack with other content than its name says would be taken for the right one later.
    if checksum_bytes(content) != one.file.checksum:
        raise describe_change([one])
    return content


def _is_there(file: DatasetFile, directory: Path) -> bool:
    path = directory / file.path
    # The size says enough: files appear here whole, under the content's own key of the cache.
    return path.is_file() and path.stat().st_size == file.size


def _unpack(file: DatasetFile, content: bytes, place: str, directory: Path) -> None:
    assert file.offset is not None
    own = content[file.offset : file.offset + file.size]
    found = checksum_bytes(own)
    if found != file.checksum:
        raise StorageError(f"{place} is damaged: the checksum of '{file.path}' in it is {found}, not {file.checksum}")
    write_whole(str(directory / file.path), own)
