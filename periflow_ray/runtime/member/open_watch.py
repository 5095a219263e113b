"""Whether anybody opens a file below a directory: a script that resumes reads its checkpoint before its first step."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

# inotify(7).
_IN_OPEN = 0x20
_IN_ISDIR = 0x40000000
_IN_Q_OVERFLOW = 0x4000
_IN_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_EVENT = struct.Struct("iIII")
_READ_BYTES = 64 << 10
# The kernel allows a user some thousands; a checkpoint with more directories is not watched.
_MAX_DIRECTORIES = 1000

_libc = ctypes.CDLL(None, use_errno=True)


class OpenWatch:
    """Watches the files that are below a directory now, from here on."""

    def __init__(self, directory: Path) -> None:
        self._has_opened: bool | None = False
        self._fd = _libc.inotify_init1(_IN_NONBLOCK_CLOEXEC)
        directories = [parent for parent, _, _ in os.walk(os.fsencode(directory))]
        is_watched = self._fd >= 0 and len(directories) <= _MAX_DIRECTORIES
        if not is_watched or any(_libc.inotify_add_watch(self._fd, path, _IN_OPEN) < 0 for path in directories):
            self._has_opened = None
            self.close()

    @property
    def has_opened(self) -> bool | None:
        """Whether a file was opened; None where nobody knows."""
        while self._has_opened is False and (events := self._read()):
            self._has_opened = any(not mask & _IN_ISDIR or mask & _IN_Q_OVERFLOW for mask in _masks_of(events))
        return self._has_opened

    def close(self) -> None:
        """End it; what is known then stays."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, _READ_BYTES) if self._fd >= 0 else b""
        except BlockingIOError:
            return b""


def _masks_of(events: bytes) -> list[int]:
    masks, offset = [], 0
    while offset < len(events):
        _, mask, _, name_bytes = _EVENT.unpack_from(events, offset)
        masks.append(mask)
        offset += _EVENT.size + name_bytes
    return masks
