"""Keys of a storage root to files of this machine, as pieces of work; verified, resumable, whole or not at all.

A file grows beside its target, in ``.<16 hex digits>.part``; of a large one ``.<16 hex digits>.done`` remembers which
parts are there. Both outlive a process that is killed, and the next download of the same files goes on with them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from periflow_ray.errors import StorageError
from periflow_ray.store import local_files
from periflow_ray.store.checksum import checksum_bytes, checksum_file, is_checksum_of
from periflow_ray.store.time_limits import time_limit
from periflow_ray.store.transfer.work import TransferContext, Work

_PARTIAL, _SIDECAR = ".part", ".done"


@dataclass(frozen=True)
class DownloadItem:
    """A key, the file of this machine it goes to, its size in bytes, and its checksum where one is known."""

    key: str
    target: Path
    size_bytes: int
    checksum: str | None = None


class Downloads:
    """The work of downloading some keys: first ``preparations``, then ``works``."""

    def __init__(self, context: TransferContext, items: Sequence[DownloadItem]) -> None:
        self._context = context
        is_local = context.root.is_local
        # Whatever names the files have: none grows where another one belongs.
        taken = {os.fspath(item.target) for item in items}
        growing = [(item, choose_partial(item.target, taken)) for item in items]
        self._small = [one for one in growing if is_local or one[0].size_bytes <= context.part_bytes]
        self._large = [
            _LargeDownload(context, item, partial_path)
            for item, partial_path in growing
            if not is_local and item.size_bytes > context.part_bytes
        ]

    def preparations(self) -> Iterator[Work]:
        """Finds out what is there already."""
        for download in self._large:
            yield download.prepare

    def works(self) -> Iterator[Work]:
        """The pieces of work; pieces of the same file may run at the same time."""
        fetch = _copy_local if self._context.root.is_local else _fetch_small
        for item, partial_path in self._small:
            yield partial(fetch, self._context, item, partial_path)
        for download in self._large:
            for index in download.missing:
                yield partial(download.fetch_part, index)

    def close(self) -> None:
        """To be called at the end, whether it is a good one or not."""
        for download in self._large:
            download.close()


class _LargeDownload:
    def __init__(self, context: TransferContext, item: DownloadItem, part: Path) -> None:
        self.missing: list[int] = []
        self._context = context
        self._item = item
        self._part = part
        self._sidecar = part.with_suffix(_SIDECAR)
        self._lock = threading.Lock()
        self._fds: tuple[int, int] | None = None
        self._num_left = 0

    def prepare(self) -> None:
        """Open the partial file, and see which parts it lacks."""
        item, part_bytes = self._item, self._context.part_bytes
        if _is_there(item):
            self._context.on_bytes(item.size_bytes)
            return
        header = json.dumps({"size": item.size_bytes, "checksum": item.checksum, "part_bytes": part_bytes})
        num_parts = -(-item.size_bytes // part_bytes)
        done = self._read_done(header) & set(range(num_parts))
        self.missing = [index for index in range(num_parts) if index not in done]
        item.target.parent.mkdir(parents=True, exist_ok=True)
        if not done:
            self._discard()
        if not done:
            self._sidecar.write_text(f"{header}\n", encoding="utf-8")
        self._num_left = len(self.missing)
        self._context.on_bytes(sum(self._num_bytes(index) for index in done))
        if not self.missing:
            self._finish()

    def fetch_part(self, index: int) -> None:
        """Read one part from the server and note that it is there."""
        part_fd, sidecar_fd = self._open()
        num_bytes = self._num_bytes(index)
        content = _fetch_range(self._context, self._item, index * self._context.part_bytes, num_bytes)
        _write_at(part_fd, content, index * self._context.part_bytes)
        os.write(sidecar_fd, f"{index}\n".encode())
        self._context.on_bytes(num_bytes)
        with self._lock:
            self._num_left -= 1
            is_last = self._num_left == 0
        if is_last:
            self._finish()

    def close(self) -> None:
        """Close what is open; what was fetched stays for the next try."""
        fds, self._fds = self._fds, None
        for fd in fds or ():
            os.close(fd)

    def _open(self) -> tuple[int, int]:
        # With the first part, and closed after the last: of many large files few are under way at a time.
        with self._lock:
            if self._fds is None:
                part_fd = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
                try:
                    os.ftruncate(part_fd, self._item.size_bytes)
                    self._fds = part_fd, os.open(self._sidecar, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                except BaseException:
                    os.close(part_fd)
                    raise
            return self._fds

    def _finish(self) -> None:
        self.close()
        if self._item.checksum is not None:
            found = checksum_file(self._part)
            if found != self._item.checksum:
                self._discard()
                raise _damaged(self._context, self._item, found)
        os.replace(self._part, self._item.target)
        self._sidecar.unlink(missing_ok=True)

    def _read_done(self, header: str) -> set[int]:
        """Parts that an earlier download of the same content has fetched."""
        # Without a checksum nobody knows whether the key still is what it was then.
        if self._item.checksum is None or not self._part.is_file():
            return set()
        with contextlib.suppress(OSError):
            first, *lines = self._sidecar.read_text(encoding="utf-8").split("\n")
            if first == header:
                # The last line has no end when its writer was killed over it; the text after the last end is dropped.
                return {int(line) for line in lines[:-1] if line.isdigit()}
        return set()

    def _num_bytes(self, index: int) -> int:
        return min(self._context.part_bytes, self._item.size_bytes - index * self._context.part_bytes)

    def _discard(self) -> None:
        self._part.unlink(missing_ok=True)
        self._sidecar.unlink(missing_ok=True)


def choose_partial(target: Path, taken: set[str]) -> Path:
    """Where a target grows: always the same place, beside it, where none of the ``taken`` files is."""
    name = target.name
    while True:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        partial_path = target.with_name(f".{name}{_PARTIAL}")
        if not taken & {os.fspath(partial_path), os.fspath(partial_path.with_suffix(_SIDECAR))}:
            return partial_path


def _fetch_small(context: TransferContext, item: DownloadItem, partial_path: Path) -> None:
    if _is_there(item):
        context.on_bytes(item.size_bytes)
        return
    content = _fetch_range(context, item, 0, item.size_bytes)
    if item.checksum is not None and (found := checksum_bytes(content)) != item.checksum:
        raise _damaged(context, item, found)
    with _growing(item.target, partial_path) as part:
        part.write_bytes(content)
    context.on_bytes(item.size_bytes)


def _copy_local(context: TransferContext, item: DownloadItem, partial_path: Path) -> None:
    if _is_there(item):
        context.on_bytes(item.size_bytes)
        return
    source = context.root.path_of(item.key)
    num_told = 0

    def admit(num_bytes: int) -> None:
        nonlocal num_told
        context.admit_chunk(num_bytes)
        context.on_bytes(min(num_bytes, item.size_bytes - num_told))
        num_told = min(item.size_bytes, num_told + num_bytes)

    def copy() -> None:
        with _growing(item.target, partial_path) as part:
            local_files.copy_content(source, os.fspath(part), chunk_bytes=context.chunk_bytes, on_chunk=admit)
            _check_size(context, item, part.stat().st_size)
            if item.checksum is not None and (found := checksum_file(part)) != item.checksum:
                raise _damaged(context, item, found)

    if not os.path.isfile(source):
        raise context.operations.missing(item.key)
    context.operations.run(item.key, copy)
    context.on_bytes(item.size_bytes - num_told)


@contextlib.contextmanager
def _growing(target: Path, part: Path) -> Iterator[Path]:
    """The partial file of a target, which becomes the target when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    try:
        yield part
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _fetch_range(context: TransferContext, item: DownloadItem, offset: int, num_bytes: int) -> bytes:
    storage, path = context.storage, context.root.path_of(item.key)

    def fetch() -> bytes:
        context.bandwidth.wait_for(num_bytes)
        # One byte more than the last part has shows a key that is longer than it should be.
        end = offset + num_bytes + (1 if offset + num_bytes == item.size_bytes else 0)
        try:
            content: bytes = storage.call("cat_file", path, start=offset, end=end, timeout_s=time_limit(num_bytes))
        except Exception as err:
            # An empty key has no bytes to ask for, and one that is shorter than it should be not these.
            if not storage.operations.failures.is_past_the_end(err):
                raise
            content = b""
        if len(content) != num_bytes:
            _check_size(context, item, int(storage.call("info", path)["size"] or 0))
            raise ConnectionError(f"the answer has {len(content)} of {num_bytes} bytes")
        return content

    try:
        return storage.operations.run(item.key, fetch)
    except FileNotFoundError as err:
        raise context.operations.missing(item.key) from err


def _write_at(fd: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        num_written = os.pwrite(fd, view, offset)
        view = view[num_written:]
        offset += num_written


def _is_there(item: DownloadItem) -> bool:
    try:
        has_size = os.stat(item.target).st_size == item.size_bytes
    except OSError:
        return False
    return has_size and item.checksum is not None and is_checksum_of(item.target, item.checksum)


def _check_size(context: TransferContext, item: DownloadItem, size: int) -> None:
    if size != item.size_bytes:
        raise StorageError(
            f"'{item.key}' in storage root '{context.root.uri}' is damaged: it has {size} bytes, not {item.size_bytes}"
        )


def _damaged(context: TransferContext, item: DownloadItem, found: str) -> StorageError:
    return StorageError(
        f"'{item.key}' in storage root '{context.root.uri}' is damaged: its checksum is {found}, not {item.checksum}"
    )
