"""Files that a job's command wrote where nothing is kept: people should know that they go with the sandbox."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

from periflow_ray.store.size_text import format_size

_MAX_FILES = 10_000
# Written beside every module that is imported.
_NOBODYS = "__pycache__"


def describe_left_files(root_dir: Path, brought: Collection[str], kept: Collection[Path]) -> str | None:
    """How many there are, how large, and which is the newest; None without any.

    Args:
        root_dir: the directory below which the command's mount paths are.
        brought: full paths of files that were there when the command began.
        kept: directories in which nothing counts, such as the output directory.
    """
    num_files = num_bytes = 0
    newest, newest_ns = "", -1
    unseen = [os.fspath(root_dir)]
    passed_over = {os.fspath(directory) for directory in kept}
    while unseen and num_files < _MAX_FILES:
        with os.scandir(unseen.pop()) as entries:
            for entry in entries:
                if entry.path in passed_over or entry.name == _NOBODYS:
                    continue
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    unseen.append(entry.path)
                elif stat.S_ISREG(found.st_mode) and entry.path not in brought:
                    num_files += 1
                    num_bytes += found.st_size
                    if found.st_mtime_ns > newest_ns:
                        newest, newest_ns = os.path.relpath(entry.path, root_dir), found.st_mtime_ns
    if num_files == 0:
        return None
    at_least = "at least " if unseen else ""
    return f"{at_least}{num_files:,} ({format_size(num_bytes)}; the newest is '/{newest}')"
