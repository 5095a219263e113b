"""Append-only text kept as numbered segment files, because object stores cannot append.

A segment is rewritten while it is small and closed when it has grown; a local root appends in place.
Each segment has one writer, also where a machine that was cut off still writes beside the one that took its place.
Readers may follow while it is written.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field

from periflow_ray.errors import NotFoundError
from periflow_ray.store.root import StorageRoot

SEGMENT_BYTES = 2 << 20


class SegmentWriter:
    """Appends whole lines below a prefix; a new writer starts a new segment and leaves old ones alone."""

    def __init__(self, root: StorageRoot, prefix: str) -> None:
        self._root = root
        self._prefix = prefix
        names = root.list_names(prefix)
        self._index = int(names[-1]) + 1 if names else 0
        self._segment = bytearray()
        self._num_flushed = 0
        # Writers flush from a background thread, and once more when they close.
        self._lock = threading.Lock()

    def append(self, lines: bytes) -> None:
        """Buffer lines, each ending in a newline; ``flush`` makes them visible."""
        with self._lock:
            self._segment += lines

    def flush(self) -> None:
        """Make everything appended so far visible to readers."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._num_flushed == len(self._segment):
            return
        key = segment_key(self._prefix, self._index)
        if self._num_flushed == 0:
            while not self._root.create_exclusive(key, bytes(self._segment)):
                self._index += 1
                key = segment_key(self._prefix, self._index)
        elif self._root.is_local:
            path = self._root.local_path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not in append mode: what a full disk cut short is written over by the next try, not repeated.
            with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
                file.seek(self._num_flushed)
                file.write(self._segment[self._num_flushed :])
        else:
            self._root.write_bytes(key, bytes(self._segment))
        self._num_flushed = len(self._segment)
        if self._num_flushed >= SEGMENT_BYTES:
            self._index += 1
            self._segment.clear()
            self._num_flushed = 0


@dataclass
class SegmentFollower:
    """Reads a prefix from its beginning; each ``read_new`` returns the complete lines since the last one."""

    root: StorageRoot
    prefix: str
    _index: int = 0
    _offset: int = 0
    _rest: bytes = field(default=b"")

    def read_new(self) -> list[bytes]:
        """Lines without their newline; empty when there is nothing new."""
        names = self.root.list_names(self.prefix)
        last_index = int(names[-1]) if names else -1
        while self._index <= last_index:
            try:
                new = self.root.read_bytes(segment_key(self.prefix, self._index), start=self._offset)
            except NotFoundError:
                new = b""
            # Kept at once: if a later read fails, the next call goes on from here.
            self._rest += new
            self._offset += len(new)
            if self._index == last_index:
                break
            self._index += 1
            self._offset = 0
        *lines, self._rest = self._rest.split(b"\n")
        return lines


def read_lines(root: StorageRoot, prefix: str) -> list[bytes]:
    """Every line below a prefix, oldest first; a last line that was cut short is left out."""
    return SegmentFollower(root, prefix).read_new()


def segment_key(prefix: str, index: int) -> str:
    """The key of a segment; names sort in writing order."""
    return f"{prefix}/{index:08d}"
