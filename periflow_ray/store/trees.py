"""What a directory consists of besides the bytes of its files, so that it can be made again somewhere else.

Kept are the times of the last change, the permission to execute, empty directories, and symbolic links that lead to
something inside. A link that leads out counts as what it leads to, because that will not be there. Pipes, sockets and
devices cannot be kept.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from periflow_ray.store.keys import leads_out

# The kernel's own views of the machine: some have no end, some do things when they are read.
_SYSTEM_DIRS = ("/proc", "/sys", "/dev")


@dataclass(frozen=True)
class TreeFile:
    """A file: its path in the tree with forward slashes, and what the file system says of it (or of what it links to).

    ``full_path`` is where it is here.
    """

    path: str
    full_path: str
    stat: os.stat_result

    @property
    def is_executable(self) -> bool:
        """Whether its owner may execute it."""
        return bool(self.stat.st_mode & stat.S_IXUSR)

    @property
    def mtime_ns(self) -> int:
        """As in ``TreeEntry``."""
        return self.stat.st_mtime_ns


class FileFacts(Protocol):
    """What a file of a tree has besides its content, wherever it is listed; ``mtime_ns`` as in ``TreeEntry``."""

    @property
    def path(self) -> str: ...

    @property
    def is_executable(self) -> bool: ...

    @property
    def mtime_ns(self) -> int | None: ...


@dataclass(frozen=True)
class TreeEntry:
    """A directory, or a symbolic link that leads to ``link_to``, seen from its own directory.

    ``mtime_ns``, when it was changed last in nanoseconds since 1970, says nothing about what it is.
    """

    path: str
    link_to: str | None = None
    mtime_ns: int | None = field(default=None, compare=False)


def walk_tree(
    directory: str | os.PathLike[str],
    *,
    follows_links_out: bool = True,
    wants: Callable[[os.DirEntry[str]], bool] = lambda entry: True,
    on_skipped: Callable[[str, str], None] = lambda path, reason: None,
) -> Iterator[TreeFile | TreeEntry]:
    """Everything below a directory, in the order of the names; each directory before what is in it.

    A directory that goes meanwhile has nothing in it.

    Args:
        follows_links_out: whether a link that leads out of the tree counts as what it leads to; else it is skipped.
            A directory that several such links lead to is there once, and the others become links to it.
        wants: called with each entry; False leaves it out, and whatever is below it.
        on_skipped: called with the full path of what cannot be kept, and why ("is a pipe").
    Raises:
        OSError: the directory, or one below it, cannot be read.
    """
    walk = _Walk(os.path.realpath(directory), follows_links_out, on_skipped)
    levels = [(_list_sorted(os.fspath(directory)), "")]
    while levels:
        entries, prefix = levels[-1]
        entry = next(entries, None)
        if entry is None:
            levels.pop()
            continue
        if not wants(entry):
            continue
        found = walk.look_at(entry, f"{prefix}{entry.name}")
        if found is None:
            continue
        yield found
        if isinstance(found, TreeEntry) and found.link_to is None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                levels.append((_list_sorted(entry.path), f"{found.path}/"))


def list_tree(
    directory: str | os.PathLike[str],
    *,
    follows_links_out: bool = True,
    wants: Callable[[os.DirEntry[str]], bool] = lambda entry: True,
    on_skipped: Callable[[str, str], None] = lambda path, reason: None,
) -> tuple[list[TreeFile], list[TreeEntry]]:
    """The files, and the directories and links, that ``walk_tree`` finds."""
    files: list[TreeFile] = []
    entries: list[TreeEntry] = []
    for found in walk_tree(directory, follows_links_out=follows_links_out, wants=wants, on_skipped=on_skipped):
        if isinstance(found, TreeFile):
            files.append(found)
        else:
            entries.append(found)
    return files, entries


class _Walk:
    def __init__(self, top: str, follows_links_out: bool, on_skipped: Callable[[str, str], None]) -> None:
        self._top = top
        self._follows_links_out = follows_links_out
        self._on_skipped = on_skipped
        # Directories by where they really are, and their path in the tree: the top, and those that links led out to.
        self._places = {top: ""}

    def look_at(self, entry: os.DirEntry[str], path: str) -> TreeFile | TreeEntry | None:
        try:
            if entry.is_symlink():
                return self._look_at_link(entry, path)
            return self._classify(entry.path, path, entry.stat(follow_symlinks=False))
        except FileNotFoundError:  # It has just gone.
            return None

    def _look_at_link(self, entry: os.DirEntry[str], path: str) -> TreeFile | TreeEntry | None:
        real = os.path.realpath(entry.path)
        inside = self._find_place(real)
        if inside is not None:
            text = os.readlink(entry.path)
            link_to = text if stays_inside(path, text) else _relative(inside, path)
            return TreeEntry(path, link_to, os.lstat(entry.path).st_mtime_ns)
        if not self._follows_links_out:
            self._on_skipped(entry.path, f"is a link to '{os.readlink(entry.path)}', which is not in it")
            return None
        if f"{self._top}/".startswith(real.rstrip("/") + "/"):
            self._on_skipped(entry.path, "is a link to a directory that it is in")
            return None
        if real.startswith(tuple(f"{system}/" for system in _SYSTEM_DIRS)) or real in _SYSTEM_DIRS:
            self._on_skipped(entry.path, f"is a link to '{real}', which is the machine's own")
            return None
        try:
            found = self._classify(entry.path, path, os.stat(entry.path))
        except OSError:
            self._on_skipped(entry.path, "is a link to nothing")
            return None
        if isinstance(found, TreeEntry):
            self._places[real] = path
        return found

    def _classify(self, full_path: str, path: str, found: os.stat_result) -> TreeFile | TreeEntry | None:
        if stat.S_ISREG(found.st_mode):
            return TreeFile(path, full_path, found)
        if stat.S_ISDIR(found.st_mode):
            return TreeEntry(path, None, found.st_mtime_ns)
        kind = "a pipe" if stat.S_ISFIFO(found.st_mode) else "a socket" if stat.S_ISSOCK(found.st_mode) else "a device"
        self._on_skipped(full_path, f"is {kind}")
        return None

    def _find_place(self, real: str) -> str | None:
        """The path in the tree of what really is there; None for what is outside."""
        rest: list[str] = []
        while True:
            place = self._places.get(real)
            if place is not None:
                return "/".join([part for part in (place, *reversed(rest)) if part])
            parent, name = os.path.split(real)
            if parent == real:
                return None
            rest.append(name)
            real = parent


def stays_inside(path: str, link_to: str) -> bool:
    """Whether a link at a path of a tree cannot lead out of it, whatever other links the tree has.

    Only the beginning may go up: behind another link ``..`` leads somewhere else than it seems.
    """
    if not link_to or link_to.startswith("/") or "\0" in link_to:
        return False
    parts = [part for part in link_to.split("/") if part not in ("", ".")]
    num_up = parts.count("..")
    return parts[:num_up] == [".."] * num_up and num_up <= path.count("/")


def refuse_entry(entry: TreeEntry) -> str | None:
    """What is wrong with an entry of a stored document, such as "a link 'a' to 'b', which does not stay inside"."""
    if leads_out(entry.path):
        return f"'{entry.path}', which does not stay inside"
    if entry.link_to is not None and not stays_inside(entry.path, entry.link_to):
        return f"a link '{entry.path}' to '{entry.link_to}', which does not stay inside"
    return None


def make_entries(directory: str | os.PathLike[str], entries: Iterable[TreeEntry]) -> None:
    """Make directories and links; the files are there already, or come later."""
    for entry in entries:
        full_path = os.path.join(directory, entry.path)
        if entry.link_to is None:
            os.makedirs(full_path, exist_ok=True)
            continue
        os.makedirs(os.path.dirname(full_path), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(full_path)
        os.symlink(entry.link_to, full_path)


def set_facts(directory: str | os.PathLike[str], files: Iterable[FileFacts], entries: Iterable[TreeEntry]) -> None:
    """Give files, links and directories their times and permissions; last, because whatever is done changes them."""
    for facts in files:
        full_path = os.path.join(directory, facts.path)
        if facts.is_executable:
            mode = os.stat(full_path).st_mode
            os.chmod(full_path, mode | (mode & 0o444) >> 2)
        _set_time(full_path, facts.mtime_ns)
    # From the innermost on, and the directories after the links in them.
    for entry in sorted(entries, key=lambda entry: (entry.link_to is None, -entry.path.count("/"))):
        _set_time(os.path.join(directory, entry.path), entry.mtime_ns)


def _set_time(full_path: str, mtime_ns: int | None) -> None:
    if mtime_ns is not None:
        os.utime(full_path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)


def _relative(inside: str, path: str) -> str:
    return posixpath.relpath(inside or ".", posixpath.dirname(path) or ".")


def _list_sorted(directory: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return iter(sorted(entries, key=lambda entry: entry.name))
