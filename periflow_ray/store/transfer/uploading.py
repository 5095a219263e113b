"""Files of this machine to keys of a storage root, as pieces of work; each key appears whole or not at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from periflow_ray.errors import StorageError
from periflow_ray.store import local_files
from periflow_ray.store.backends.backend import PartWriter
from periflow_ray.store.time_limits import time_limit
from periflow_ray.store.transfer.work import TransferContext, Work


@dataclass(frozen=True)
class UploadItem:
    """A file of this machine and the key it goes to.

    ``is_immutable``: nobody writes to the source any more, so that a local root may link to it instead of copying.
    """

    source: Path
    key: str
    is_immutable: bool = False


class Uploads:
    """The work of uploading some files.

    Raises:
        OSError: a source does not exist.
    """

    def __init__(self, context: TransferContext, items: Sequence[UploadItem]) -> None:
        self._context = context
        self._sizes = [(item, os.stat(item.source).st_size) for item in items]
        self._begun: list[_PartedUpload] = []

    def works(self) -> Iterator[Work]:
        """The pieces of work; pieces of the same file may run at the same time."""
        self._context.root.make_directory()
        for item, size in self._sizes:
            if self._context.root.is_local:
                yield partial(_put_local, self._context, item, size)
            else:
                yield from self._split(item, size)

    def abort(self) -> None:
        """Let the server forget what was begun and not completed, as far as it can be reached."""
        for upload in self._begun:
            upload.abort()

    def _split(self, item: UploadItem, size: int) -> Iterator[Work]:
        context = self._context
        path = context.root.path_of(item.key)
        writer = context.root.backend.open_part_writer(
            context.storage, item.key, path, num_bytes=size, part_bytes=context.part_bytes
        )
        if writer is None:
            yield partial(_put_file, context, item, size)
            return
        if size <= writer.part_bytes:
            yield partial(_put_whole, context, item, size)
            return
        upload = _PartedUpload(context, item, size, writer)
        self._begun.append(upload)
        for index in range(upload.num_parts):
            yield partial(upload.put_part, index)


class _PartedUpload:
    """One large file; its parts may be put from several threads, and who puts the last one completes it."""

    def __init__(self, context: TransferContext, item: UploadItem, size: int, writer: PartWriter) -> None:
        self.num_parts = -(-size // writer.part_bytes)
        self._context = context
        self._item = item
        self._size = size
        self._writer = writer
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._num_left = self.num_parts

    def put_part(self, index: int) -> None:
        fd = self._begin()
        offset = index * self._writer.part_bytes
        num_bytes = min(self._writer.part_bytes, self._size - offset)
        with self._context.memory.holding(num_bytes):
            self._context.bandwidth.wait_for(num_bytes)
            content = _read_range(fd, self._item, offset, num_bytes)
            self._writer.put_part(index, content)
            del content
        self._context.on_bytes(num_bytes)
        with self._lock:
            self._num_left -= 1
            is_last = self._num_left == 0
        if is_last:
            self._complete()

    def abort(self) -> None:
        """Give up what is not complete; to be called when no thread puts a part any more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            self._writer.abort()

    def _begin(self) -> int:
        with self._lock:
            if self._fd is None:
                # One descriptor for all parts, so that a source that is replaced meanwhile is not mixed with the old.
                fd = os.open(self._item.source, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    self._writer.begin()
                except BaseException:
                    os.close(fd)
                    raise
                self._fd = fd
            return self._fd

    def _complete(self) -> None:
        assert self._fd is not None
        if os.fstat(self._fd).st_size != self._size:
            raise _changed(self._item)
        self._writer.complete()
        os.close(self._fd)
        self._fd = None


def _put_local(context: TransferContext, item: UploadItem, size: int) -> None:
    source, target = os.fspath(item.source), context.root.path_of(item.key)
    num_told = 0

    def admit(num_bytes: int) -> None:
        nonlocal num_told
        context.admit_chunk(num_bytes)
        context.on_bytes(min(num_bytes, size - num_told))
        num_told = min(size, num_told + num_bytes)

    def put() -> None:
        if item.is_immutable and local_files.link(source, target):
            return
        with local_files.replacing(target) as hidden:
            local_files.copy_content(source, hidden, chunk_bytes=context.chunk_bytes, on_chunk=admit)

    context.operations.run(item.key, put)
    context.on_bytes(size - num_told)


def _put_file(context: TransferContext, item: UploadItem, size: int) -> None:
    """By fsspec's own means, for storage that knows no parts."""
    path = context.root.path_of(item.key)
    context.bandwidth.wait_for(size)
    context.storage.run(item.key, "put_file", os.fspath(item.source), path)
    context.on_bytes(size)


def _put_whole(context: TransferContext, item: UploadItem, size: int) -> None:
    path = context.root.path_of(item.key)
    with context.memory.holding(size):
        context.bandwidth.wait_for(size)
        with open(item.source, "rb", buffering=0) as file:
            content = _read_range(file.fileno(), item, 0, size)
        context.storage.run(item.key, "pipe_file", path, content, timeout_s=time_limit(size))
    context.on_bytes(size)


def _read_range(fd: int, item: UploadItem, offset: int, num_bytes: int) -> bytes:
    content = os.pread(fd, num_bytes, offset)
    while len(content) < num_bytes:
        more = os.pread(fd, num_bytes - len(content), offset + len(content))
        if not more:
            raise _changed(item)
        content += more
    return content


def _changed(item: UploadItem) -> StorageError:
    return StorageError(f"'{item.source}' changed while it was uploaded to '{item.key}'; upload it again.")
