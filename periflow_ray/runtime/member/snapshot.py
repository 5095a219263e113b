"""Snapshots of the output checkpoint directory, taken while no rank writes, so that the training goes on at once.

A snapshot is a directory of its own. A file that did not change since the one before is hard-linked from there; any
other is cloned where the file system can (reflink), else copied in the kernel.

A store through a shared mapping (``numpy.memmap``) may change a file and none of its time stamps: the kernel sets them
with the first store into a clean page, and another one may follow before the page is written back. So a file that is
mapped for writing when a snapshot has been taken is copied again with the next one.

A snapshot has the files of one moment: where some came or went while it was taken, for example because older ones are
rotated away beside the training, it is taken on until none did.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from periflow_ray.store.checkpoints import Content, LocalFile
from periflow_ray.store.checksum import checksum_file
from periflow_ray.store.local_files import copy_content
from periflow_ray.store.trees import TreeEntry, TreeFile, list_tree

# Writes within one tick of the kernel's clock (10 ms at most) may leave the same time stamp.
_SAFE_AGE_NS = 50_000_000
_NUM_COPY_TRIES = 3
_NUM_COPIERS = 4
# The training waits meanwhile.
_UNREST_TIMEOUT_S = 10.0
_UNREST_PAUSE_S = 0.01


@dataclass(frozen=True)
class _Stamp:
    """What changes when a file does."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


@dataclass(frozen=True)
class Snapshot:
    """A copy of a directory's files; ``stamps`` are those of the originals that can be recognised as unchanged later.

    What the originals have besides their content is in ``files`` and ``entries``.
    """

    source: Path
    directory: Path
    stamps: dict[str, _Stamp]
    files: Sequence[TreeFile] = ()
    entries: Sequence[TreeEntry] = ()
    are_maps_read: threading.Event = field(default_factory=threading.Event, repr=False)


class Snapshots:
    """The snapshots of one directory; the newest stays, so that the next one has something to link from.

    ``take`` belongs to one thread and everything else to another.

    Args:
        directory: where to keep them; on the file system of what is copied, so that reflinks are possible.
        find_writers: ids of the processes that may write to what is copied.
        on_skipped: see ``walk_tree``.
    """

    def __init__(
        self,
        directory: Path,
        find_writers: Callable[[], Collection[int]] = lambda: (),
        on_skipped: Callable[[str, str], None] = lambda path, reason: None,
    ) -> None:
        self._directory = directory
        self._find_writers = find_writers
        self._on_skipped = on_skipped
        self._newest: Snapshot | None = None
        self._released: list[Snapshot] = []
        self._checksums: dict[tuple[int, ...], str] = {}
        self._lock = threading.Lock()

    def take(self, source: Path, name: str) -> Snapshot:
        """Copy a directory's files aside; for links see ``walk_tree``. Call ``release`` when it is no longer needed.

        Raises:
            OSError: the copy failed, for example because the disk is full, or files come and go all the time; nothing
                is left of it.
        """
        target = self._directory / name
        try:
            target.mkdir(parents=True)
            if self._newest is not None:
                self._forget_mapped(self._newest)
            snapshot = self._copy_moment(source, target)
        except OSError:
            shutil.rmtree(target, ignore_errors=True)
            raise
        with self._lock:
            self._newest = snapshot
        return snapshot

    def _copy_moment(self, source: Path, target: Path) -> Snapshot:
        # Counted without the copying, which takes long where files are large.
        deadline_s: float | None = None
        copied: dict[str, _Stamp | None] | None = None
        while True:
            files, entries = list_tree(source, on_skipped=self._on_skipped)
            changed = (copied or {}).keys() ^ {file.path for file in files}
            if copied is not None:
                if not changed:
                    stamps = {path: stamp for path, stamp in copied.items() if stamp is not None}
                    return Snapshot(source, target, stamps, files, entries)
                now_s = time.monotonic()
                deadline_s = deadline_s or now_s + _UNREST_TIMEOUT_S
                if now_s >= deadline_s:
                    raise OSError(
                        f"files in '{source}' come and go all the time, '{min(changed)}' for example, so that a "
                        f"checkpoint would have some of them only (tried for {_UNREST_TIMEOUT_S:.0f} s). Write and "
                        "delete files there before pf.upload_checkpoint() is called, or in another folder."
                    )
                time.sleep(_UNREST_PAUSE_S)
            copied = copied or {}
            for path in copied.keys() & changed:
                del copied[path]
                os.unlink(target / path)
            began_s = time.monotonic()
            copied |= _copy_files([file for file in files if file.path in changed], source, target, self._newest)
            if deadline_s is not None:
                deadline_s += time.monotonic() - began_s

    def describe(self, snapshot: Snapshot) -> Content:
        """Every file with size and checksum, by path; a file that was linked is not read again."""
        self._forget_mapped(snapshot)
        files = []
        checksums: dict[tuple[int, ...], str] = {}
        for file in snapshot.files:
            copy = snapshot.directory / file.path
            stat = os.stat(copy)
            # Not the inode alone: its number is used again once the last link to it is gone.
            identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
            checksums[identity] = self._checksums.get(identity) or checksum_file(copy)
            files.append(LocalFile(file.path, stat.st_size, checksums[identity], file.is_executable, file.mtime_ns))
        self._checksums = checksums
        return Content(files, snapshot.entries)

    def _forget_mapped(self, snapshot: Snapshot) -> None:
        """Once for each snapshot, beside the training unless the next one comes first."""
        with self._lock:
            if snapshot.are_maps_read.is_set():
                return
            top = f"{os.path.realpath(snapshot.source)}/"
            for path in _find_mapped(self._find_writers()):
                if path.startswith(top):
                    snapshot.stamps.pop(path.removeprefix(top), None)
            snapshot.are_maps_read.set()

    def release(self, snapshot: Snapshot) -> None:
        """Delete a snapshot once it is not the newest any more."""
        with self._lock:
            self._released.append(snapshot)
            unneeded = [released for released in self._released if released is not self._newest]
            self._released = [released for released in self._released if released is self._newest]
        for released in unneeded:
            shutil.rmtree(released.directory, ignore_errors=True)


def _copy_files(
    files: list[TreeFile], source: Path, target: Path, previous: Snapshot | None
) -> dict[str, _Stamp | None]:
    """Copies of files, by path; a stamp is None if a later look cannot tell whether the file changed.

    A file that went meanwhile is not among them.
    """
    for parent in {os.path.dirname(file.path) for file in files}:
        (target / parent).mkdir(parents=True, exist_ok=True)
    # Linking takes microseconds, so that threads would cost more than they save.
    linked = {} if previous is None else {file.path: _link_unchanged(file, target, previous) for file in files}
    stamps = {path: stamp for path, stamp in linked.items() if stamp is not None}
    changed = [file.path for file in files if file.path not in stamps]
    if not changed:
        return {**stamps}
    with ThreadPoolExecutor(_NUM_COPIERS, thread_name_prefix="snapshot") as copiers:
        copied = copiers.map(lambda path: _copy_consistently(source / path, target / path), changed)
        return {**stamps, **{path: stamp for path, (is_there, stamp) in zip(changed, copied, strict=True) if is_there}}


def _link_unchanged(file: TreeFile, target: Path, previous: Snapshot) -> _Stamp | None:
    """The stamp of a file that is as it was in the previous snapshot and linked from there; else None."""
    known = previous.stamps.get(file.path)
    try:
        if known is None or _as_stamp(file.stat) != known:
            return None
        os.link(f"{previous.directory}/{file.path}", f"{target}/{file.path}")
    except OSError:  # It has just been deleted, or there are no hard links here.
        return None
    return known


def _copy_consistently(source: Path, target: Path) -> tuple[bool, _Stamp | None]:
    """Whether there is a copy, and the source's stamp if a later look at it can tell whether it changed."""
    try:
        for _ in range(_NUM_COPY_TRIES):
            now_ns = time.time_ns()
            stamp = _stamp_of(source)
            target.unlink(missing_ok=True)
            copy_content(os.fspath(source), os.fspath(target))
            if _stamp_of(source) == stamp:
                is_safe = now_ns - max(stamp.modified_ns, stamp.changed_ns) > _SAFE_AGE_NS
                return True, stamp if is_safe else None
    except (FileNotFoundError, NotADirectoryError):
        # Lightning deletes old checkpoints beside the training; what goes while it is copied is not wanted.
        target.unlink(missing_ok=True)
        return False, None
    # A file that changes all the time, such as a log, has no better moment.
    return True, None


def _find_mapped(pids: Collection[int]) -> set[str]:
    """Paths of the files that these processes have mapped so that their stores reach the file."""
    mapped: set[str] = set()
    for pid in pids:
        with (
            contextlib.suppress(OSError),
            open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as maps,
        ):
            for line in maps:
                # Address, permissions, offset, device, inode, path.
                fields = line.split(maxsplit=5)
                if len(fields) == 6 and fields[1].startswith("rw") and fields[1].endswith("s"):
                    mapped.add(fields[5].rstrip("\n").replace("\\012", "\n"))
    return mapped


def _stamp_of(path: Path) -> _Stamp:
    return _as_stamp(os.stat(path))


def _as_stamp(stat: os.stat_result) -> _Stamp:
    return _Stamp(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
