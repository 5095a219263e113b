"""Append-only text kept as numbered segment files, because object stores cannot append.

A segment is rewritten while it is small and closed when it has grown; a local root appends in place.
Each segment has one writer, also where a machine that was cut off still writes beside the one that took its place.
Readers may follow while it is written.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.store.root import StorageRoot

SEGMENT_BYTES = 2 << 20
# Some thousand lines of a log.
_FIRST_BLOCK_BYTES = 256 << 10
_SEGMENT_NAME = re.compile(r"[0-9]{8,}")


class SegmentWriter:
    """Appends whole lines below a prefix; a new writer starts a new segment and leaves old ones alone.

    Args:
        max_segments: of more than so many those in the middle are deleted, an eighth of them being the first; None
            keeps all.
    """

    def __init__(self, root: StorageRoot, prefix: str, *, max_segments: int | None = None) -> None:
        self._root = root
        self._prefix = prefix
        self._max_segments = max_segments
        self.has_deleted = False
        """Whether lines in the middle are deleted."""
        # Known when the first segment begins: a writer is made without asking the storage.
        self._index: int | None = None
        # Appended, and not yet taken into the segment: whoever appends does not wait for a flush.
        self._appended: deque[bytes] = deque()
        self._segment = bytearray()
        self._num_flushed = 0
        self._may_be_begun = False
        # Writers flush from a background thread, and once more when they close.
        self._lock = threading.Lock()

    def append(self, lines: bytes) -> None:
        """Buffer lines, each ending in a newline; ``flush`` makes them visible. Never waits for the storage."""
        self._appended.append(lines)

    def flush(self, *, is_durable: bool = False) -> None:
        """Make everything appended so far visible to readers.

        Args:
            is_durable: whether it outlives a loss of power when this returns.
        """
        with self._lock:
            self._flush(is_durable)

    def _flush(self, is_durable: bool) -> None:
        while self._appended:
            self._segment += self._appended.popleft()
        if self._num_flushed < len(self._segment):
            if self._index is None:
                self._index = last_segment(self._root, self._prefix) + 1
            if self._num_flushed == 0:
                self._index = self._begin_segment(self._index)
            if self._num_flushed < len(self._segment):
                self._extend_segment(self._index)
        if self._index is None:
            return
        if is_durable and self._num_flushed:
            self._root.sync([segment_key(self._prefix, self._index)])
        if self._num_flushed >= SEGMENT_BYTES:
            self._index += 1
            self._segment.clear()
            self._num_flushed = 0

    def _begin_segment(self, index: int) -> int:
        """Create the first segment from ``index`` on that nobody has; one that a failed try did create is gone on with.

        Returns:
            Its number.
        """
        content = bytes(self._segment)
        while True:
            key = segment_key(self._prefix, index)
            may_be_begun, self._may_be_begun = self._may_be_begun, True
            if self._root.create_exclusive(key, content):
                self._num_flushed = len(content)
            elif may_be_begun and content.startswith(begun := self._read(key)):
                # The answer to that try was lost: in a new segment its lines would be there twice.
                self._num_flushed = len(begun)
            self._may_be_begun = False
            if self._num_flushed:
                self._delete_middle(index)
                return index
            index += 1

    def _delete_middle(self, index: int) -> None:
        if self._max_segments is None:
            return
        num_first = self._max_segments // 8
        too_many = index - (self._max_segments - num_first)
        if too_many < num_first:
            return
        self.has_deleted = True
        # One that stays costs nothing but its room.
        with contextlib.suppress(OSError, StorageError):
            self._root.delete(segment_key(self._prefix, too_many))

    def _extend_segment(self, index: int) -> None:
        key = segment_key(self._prefix, index)
        if self._root.is_local:
            path = self._root.local_path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not in append mode: what a full disk cut short is written over by the next try, not repeated.
            with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
                file.seek(self._num_flushed)
                file.write(self._segment[self._num_flushed :])
        else:
            self._root.write_bytes(key, bytes(self._segment))
        self._num_flushed = len(self._segment)

    def _read(self, key: str) -> bytes:
        try:
            return self._root.read_bytes(key)
        except NotFoundError:
            return b""


@dataclass
class SegmentFollower:
    """Reads a prefix from its beginning; each ``read_new`` returns the complete lines since the last one.

    A line belongs to one segment: where its writer was killed over it, and another one began the next segment, the
    half line is left out and spoils no other.

    Args:
        num_past_lines: of the lines that are there at the first call, at least so many of the last ones are returned,
            and little more is read; None returns all.
    """

    root: StorageRoot
    prefix: str
    num_past_lines: int | None = None
    _index: int = 0
    _offset: int = 0
    _rest: bytes = b""
    _lines: list[bytes] = field(default_factory=list)

    def read_new(self) -> list[bytes]:
        """Lines without their newline; empty when there is nothing new."""
        last_index = last_segment(self.root, self.prefix)
        if self.num_past_lines is not None and last_index >= 0:
            self._skip_to_last(self.num_past_lines, last_index)
            self.num_past_lines = None
        while self._index <= last_index:
            try:
                new = self.root.read_bytes(segment_key(self.prefix, self._index), start=self._offset)
            except NotFoundError:
                new = b""
            # Kept at once: if a later read fails, the next call goes on from here.
            self._offset += len(new)
            *lines, self._rest = (self._rest + new).split(b"\n")
            self._lines += lines
            if self._index == last_index:
                break
            self._index, self._offset, self._rest = self._index + 1, 0, b""
        found, self._lines = self._lines, []
        return found

    def _skip_to_last(self, num_lines: int, last_index: int) -> None:
        """Go to where so many lines begin, looking at the end of the last segment first, and at ever more of it."""
        num_found = 0
        for index in range(last_index, -1, -1):
            key = segment_key(self.prefix, index)
            try:
                size = self.root.size_bytes(key)
            except NotFoundError:
                continue
            num_bytes = _FIRST_BLOCK_BYTES
            while True:
                start = max(0, size - num_bytes)
                block = self.root.read_bytes(key, start=start)
                # Where it does not begin with the segment, its first line is half a line.
                begin = 0 if start == 0 else block.find(b"\n") + 1
                num_here = block.count(b"\n", begin)
                if num_found + num_here >= num_lines:
                    self._index, self._offset = index, start + begin
                    return
                if start == 0:
                    break
                num_bytes *= 4
            num_found += num_here


def iterate_lines(root: StorageRoot, prefix: str) -> Iterator[bytes]:
    """Every line below a prefix, oldest first, with one segment at a time in memory; half lines are left out."""
    for index in range(last_segment(root, prefix) + 1):
        try:
            *lines, _ = root.read_bytes(segment_key(prefix, index)).split(b"\n")
        except NotFoundError:
            continue
        yield from lines


def read_lines(root: StorageRoot, prefix: str) -> list[bytes]:
    """As ``iterate_lines``, as a list."""
    return list(iterate_lines(root, prefix))


def last_segment(root: StorageRoot, prefix: str) -> int:
    """The number of the newest segment, -1 without one; files of other names are none."""
    return max((int(name) for name in root.list_names(prefix) if _SEGMENT_NAME.fullmatch(name)), default=-1)


def segment_key(prefix: str, index: int) -> str:
    """The key of a segment; names sort in writing order."""
    return f"{prefix}/{index:08d}"
