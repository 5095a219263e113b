"""Directory trees that nobody should write to: take the permission away, and still be able to delete them."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

_WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def make_read_only(directory: Path) -> None:
    """Take the permission to write from every file and directory of a tree; what links point to is left alone.

    A process of root can write nevertheless.
    """
    for parent, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                os.chmod(path, os.stat(path).st_mode & ~_WRITE)
        os.chmod(parent, os.stat(parent).st_mode & ~_WRITE)


def make_directories_writable(directory: Path) -> None:
    """Let the owner add, replace and delete files of a read-only tree; the files themselves stay read-only."""
    if not directory.is_dir():
        return
    for parent, _, _ in os.walk(directory):
        os.chmod(parent, os.stat(parent).st_mode | stat.S_IRWXU)


def remove_tree(directory: Path) -> None:
    """Delete a directory and everything below it, also when it is read-only; nothing happens when there is none."""
    make_directories_writable(directory)
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        # Says what is in the way.
        shutil.rmtree(directory)
