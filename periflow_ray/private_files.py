"""Files and directories that only this user reads, from the first moment on, whatever the umask."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path


def create_private(path: str | os.PathLike[str], content: bytes, *, is_durable: bool = False) -> None:
    """Create a file of mode 0600; there is no time at which others could open it.

    Args:
        is_durable: return only when the content is on the disk.
    Raises:
        FileExistsError: there is something at the path.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        if is_durable:
            file.flush()
            os.fsync(file.fileno())


def make_private_directories(path: Path) -> None:
    """Make a directory, and those above it that are missing, each with mode 0700; one that is there stays as it is."""
    for level in reversed([path, *path.parents]):
        # Where one may not look into, it may be there nevertheless.
        if not os.path.lexists(level):
            with contextlib.suppress(FileExistsError):
                os.mkdir(level, 0o700)


def make_own_directory(path: Path) -> None:
    """Make a directory in a place where others may have made one of that name; nobody else may look into it then.

    Raises:
        PermissionError: what is there is another user's, a link, or others may write to it.
    """
    make_private_directories(path)
    if reason := _describe_stranger(path):
        raise PermissionError(
            f"'{path}' cannot be trusted: {reason}. Whoever made it decides what is in it. Delete it, or set TMPDIR to "
            "a directory of your own."
        )
    # Earlier versions left it to the umask.
    if stat.S_IMODE(os.lstat(path).st_mode) != 0o700:
        os.chmod(path, 0o700)


def hold_directory(path: Path) -> int:
    """Keep what clears out old files of ``/tmp`` away from a directory, until the descriptor returned is closed.

    systemd-tmpfiles leaves alone what is locked, see tmpfiles.d(5).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.suppress(OSError):  # A file system without locks.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def is_own_directory(path: Path) -> bool:
    """Whether a directory is there, is this user's, and nobody else may write to it."""
    return path.is_dir() and _describe_stranger(path) is None


def _describe_stranger(path: Path) -> str | None:
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        return "it is a link" if stat.S_ISLNK(found.st_mode) else "it is no directory"
    if found.st_uid != os.geteuid():
        return f"it belongs to user {found.st_uid}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others may write to it"
    return None
