"""A node's cache of directories fetched from elsewhere: shared by all jobs, bounded, least recently used out first.

    <directory>/entries/<key>/files/    complete, read-only
    <directory>/entries/<key>/sizes.json, reserved_bytes
    <directory>/partial/<key>/          being fetched, or left by a process that died: fetching goes on from it
    <directory>/locks/<key>             held shared while an entry is fetched or used, exclusively while it is evicted;
                                        its time of change is when the entry was last used
    <directory>/locks/<key>.fetch       held while the entry is fetched
    <directory>/trash/                  on its way out

The locks are ``flock`` locks: the kernel releases them when a process ends, however it ends. None changes its kind
while it is held: who waits to hold one exclusively would wait for all who use the entry.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from periflow_ray.errors import StorageError, UsageError
from periflow_ray.private_files import make_private_directories
from periflow_ray.store.read_only import make_directories_writable, make_read_only, remove_tree
from periflow_ray.user_dirs import cache_dir

DIR_VARIABLE = "PERIFLOW_CACHE_DIR"
MAX_BYTES_VARIABLE = "PERIFLOW_CACHE_MAX_BYTES"
_DEFAULT_SHARE = 0.8
_WAIT_INTERVAL_S = 0.1


class CacheUse:
    """A complete entry in use: nobody evicts it before ``close`` or the end of the process (and of its forks)."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock: int | None = lock

    def close(self) -> None:
        """The entry may go from now on."""
        if self._lock is not None:
            os.utime(self._lock)
            os.close(self._lock)
            self._lock = None


@dataclass(frozen=True)
class _Resident:
    """What takes room in the cache: an entry, or what is fetched to become one."""

    key: str
    directory: Path
    num_bytes: int
    used_unix_s: float


class DatasetCache:
    """Directories by key, each filled once per machine however many processes ask for it.

    Args:
        directory: default is ``PERIFLOW_CACHE_DIR``, else ``periflow-ray/datasets`` in the user's cache directory.
        max_bytes: bound of all entries together, those in use and being fetched included; default is
            ``PERIFLOW_CACHE_MAX_BYTES``, else 80 % of what the entries take and what is free beside them.
        noun: what an entry is, in messages.
    Raises:
        UsageError: the variable is not a number of bytes.
    """

    def __init__(self, directory: Path | None = None, max_bytes: int | None = None, noun: str = "dataset") -> None:
        self._noun = noun
        default = cache_dir() / "datasets"
        self.directory = Path(directory or os.environ.get(DIR_VARIABLE) or default).absolute()
        self._max_bytes = _read_max_bytes() if max_bytes is None else max_bytes
        self._entries, self._partial = self.directory / "entries", self.directory / "partial"
        self._locks, self._trash = self.directory / "locks", self.directory / "trash"

    def open(
        self,
        key: str,
        fill: Callable[[Path], None],
        *,
        size_bytes: int | None = None,
        on_wait: Callable[[], None] | None = None,
        check_wait: Callable[[], None] = lambda: None,
    ) -> CacheUse:
        """Use the entry of a key, filled by this call if it is not there.

        Args:
            key: a file name that changes when the content does.
            fill: puts the content into a directory; finds there what an earlier call that died left in it.
            size_bytes: what the content will take; None if nobody knows before it is there.
            on_wait: called when another process fetches the entry at the moment; ``open`` then waits for it.
            check_wait: called again and again meanwhile; what it raises ends the wait.
        Raises:
            StorageError: it does not fit beside the entries in use.
        """
        make_private_directories(self.directory)
        for directory in (self._entries, self._partial, self._locks, self._trash):
            directory.mkdir(exist_ok=True)
        lock = os.open(self._locks / key, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if not self._is_complete(key):
                with self._fetching(key, on_wait, check_wait):
                    if not self._is_complete(key):
                        self._fill(key, fill, size_bytes)
            os.utime(lock)
        except BaseException:
            os.close(lock)
            raise
        return CacheUse(self._entries / key / "files", lock)

    def discard_unfinished(self) -> None:
        """Delete what processes that have died left of entries that they were fetching."""
        if not self._partial.is_dir():
            return
        for directory in self._partial.iterdir():
            # Who fetches one holds its lock.
            with self._try_lock(directory.name) as is_alone:
                if is_alone:
                    self._discard(directory)

    @contextlib.contextmanager
    def _fetching(self, key: str, on_wait: Callable[[], None] | None, check_wait: Callable[[], None]) -> Iterator[None]:
        with open(self._locks / f"{key}.fetch", "wb") as file:
            has_told = False
            while not _try_lock_alone(file.fileno()):
                if on_wait is not None and not has_told:
                    on_wait()
                has_told = True
                check_wait()
                time.sleep(_WAIT_INTERVAL_S)
            yield

    def _is_complete(self, key: str) -> bool:
        """Whether every file is there in its size: a machine that lost power may have lost the end of some."""
        entry = self._entries / key
        try:
            sizes = json.loads((entry / "sizes.json").read_text())
            return all(os.stat(f"{entry}/files/{path}").st_size == size for path, size in sizes.items())
        except (OSError, ValueError):
            return False

    def _fill(self, key: str, fill: Callable[[Path], None], size_bytes: int | None) -> None:
        partial, entry = self._partial / key, self._entries / key
        # A process may have died after the files were made read-only.
        make_directories_writable(partial)
        files = partial / "files"
        if size_bytes is not None:
            self._reserve(key, size_bytes)
        files.mkdir(parents=True, exist_ok=True)
        fill(files)
        sizes = dict(_measure(files))
        try:
            self._reserve(key, sum(sizes.values()))
        except StorageError:
            with self._alone():
                self._discard(partial)
            raise
        (partial / "sizes.json").write_text(json.dumps(sizes))
        make_read_only(files)
        with self._alone():
            self._discard(entry)
            partial.rename(entry)

    def _reserve(self, key: str, num_bytes: int) -> None:
        """Make room for a key by evicting what was not used for longest, and claim it."""
        with self._alone():
            for leftover in self._trash.iterdir():
                remove_tree(leftover)
            # By key, the entries last: one that moves there from the partial ones meanwhile is counted, and once.
            residents = {resident.key: resident for resident in self._find_residents() if resident.key != key}
            self._evict(list(residents.values()), num_bytes)
            partial = self._partial / key
            partial.mkdir(exist_ok=True)
            (partial / "reserved_bytes").write_text(str(num_bytes))

    def _evict(self, residents: list[_Resident], num_bytes: int) -> None:
        used_bytes = sum(resident.num_bytes for resident in residents)
        max_bytes = self._max_bytes if self._max_bytes is not None else self._default_max_bytes(residents)
        with contextlib.ExitStack() as stack:
            leaving = []
            for resident in sorted(residents, key=lambda resident: resident.used_unix_s):
                if used_bytes + num_bytes <= max_bytes or num_bytes > max_bytes:
                    break
                if stack.enter_context(self._try_lock(resident.key)):
                    leaving.append(resident)
                    used_bytes -= resident.num_bytes
            # Nothing goes unless it is enough.
            if used_bytes + num_bytes > max_bytes:
                in_use = "" if num_bytes > max_bytes else f", and running jobs use {used_bytes:,} of them"
                raise StorageError(
                    f"the {self._noun} takes {num_bytes:,} bytes, but the {self._noun} cache {self.directory} may hold "
                    f"{max_bytes:,}{in_use}. Raise ${MAX_BYTES_VARIABLE}, or set ${DIR_VARIABLE} to a directory on a "
                    "larger disk."
                )
            for resident in leaving:
                self._discard(resident.directory)

    def _default_max_bytes(self, residents: list[_Resident]) -> int:
        entries_bytes = sum(one.num_bytes for one in residents if one.directory.parent == self._entries)
        return int(_DEFAULT_SHARE * (entries_bytes + shutil.disk_usage(self.directory).free))

    def _find_residents(self) -> Iterator[_Resident]:
        for parent in (self._partial, self._entries):
            for directory in parent.iterdir():
                try:
                    num_bytes = int((directory / "reserved_bytes").read_text())
                    used_unix_s = (self._locks / directory.name).stat().st_mtime
                except (OSError, ValueError):
                    # Just moved from one to the other, or begun by a process that died at once.
                    num_bytes, used_unix_s = 0, 0.0
                yield _Resident(directory.name, directory, num_bytes, used_unix_s)

    @contextlib.contextmanager
    def _try_lock(self, key: str) -> Iterator[bool]:
        """Lock an entry against being used; False if somebody uses or fetches it."""
        lock = os.open(self._locks / key, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one process at a time counts and evicts."""
        with open(self.directory / "lock", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _discard(self, directory: Path) -> None:
        # Renamed first, so that nobody sees an entry that is half deleted.
        leaving = self._trash / uuid.uuid4().hex
        with contextlib.suppress(FileNotFoundError):
            directory.rename(leaving)
            remove_tree(leaving)


def _try_lock_alone(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _measure(directory: Path) -> Iterator[tuple[str, int]]:
    for parent, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(parent, name)
            # A link has no size of its own, and what it leads to may not be there.
            if not os.path.islink(path):
                yield os.path.relpath(path, directory), os.stat(path).st_size


def _read_max_bytes() -> int | None:
    given = os.environ.get(MAX_BYTES_VARIABLE)
    if not given:
        return None
    if not given.isdecimal():
        raise UsageError(f"${MAX_BYTES_VARIABLE} must be a number of bytes, such as 200000000000, not {given!r}.")
    return int(given)
