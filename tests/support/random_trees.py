"""Directories with everything that a POSIX file system allows, made from random numbers, and what they consist of."""

from __future__ import annotations

import os
import random
import socket
import stat
from pathlib import Path

# What storages, their clients and archives have stumbled over.
ODD_NAMES = [
    b"plain.pt",
    b"epoch=1-step=20.ckpt",
    b"with blank",
    b" blank first",
    b"blank last ",
    b"line\nbreak",
    b"tab\tand\x01\x7f",
    b"model.pt.part",
    b".0123456789abcdef.part",
    b".0123456789abcdef.done",
    b".model.pt.0123abcd.periflow-partial",
    b"a+b",
    b"50%",
    b"%2e%2e",
    b"a#b",
    b"a?b=c&d",
    b"back\\slash",
    b"star*",
    b"[0-9]",
    b"{a,b}",
    b"~",
    b"-rf",
    b"a:b",
    b"'quote\"",
    b"$HOME`x`",
    b"dots..",
    b"...",
    b".hidden",
    "caf\u00e9".encode(),
    "cafe\u0301".encode(),
    "모델.pt".encode(),
    "\U0001f600".encode(),
    b"not\xff\xfeutf8",
    b"n" * 255,
    "가".encode() * 85,
    b"manifest.json",
    b"files",
    b"CON",
    b"UPPER",
    b"upper",
]
Facts = dict[str, tuple[object, ...]]


def make_tree(directory: Path, chance: random.Random) -> None:
    """Fill a new directory with files, links, empty directories, and what cannot be kept."""
    directory.mkdir(parents=True)
    parents = [os.fsencode(directory)]
    files: list[bytes] = []
    for name in chance.sample(ODD_NAMES, chance.randint(4, 14)):
        path = os.path.join(chance.choice(parents), name)
        kind = chance.choices(["file", "directory", "link", "sparse", "fifo"], [8, 4, 3, 1, 1])[0]
        if len(path) > 1500:
            continue
        if kind == "directory":
            os.mkdir(path)
            parents.append(path)
        elif kind == "link":
            target = chance.choice([*parents, *files, path, os.path.join(os.path.dirname(path), b"nothing")])
            is_absolute = chance.random() < 0.3
            os.symlink(target if is_absolute else os.path.relpath(target, os.path.dirname(path)), path)
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            _write(path, chance, is_sparse=kind == "sparse")
            files.append(path)
    _write(os.path.join(os.fsencode(directory), b"always"), chance, is_sparse=False)
    _listen(directory / "socket")
    _set_times(directory, chance)


def read_tree_facts(directory: Path) -> Facts:
    """All that has to come back: by path, what each thing is, with content, time and permission to execute."""
    facts: Facts = {}
    top = os.fsencode(directory)
    for parent, directories, names in os.walk(top):
        for name in (*directories, *names):
            path = os.path.join(parent, name)
            found = os.lstat(path)
            key = os.fsdecode(os.path.relpath(path, top))
            if stat.S_ISLNK(found.st_mode):
                # Wherever the tree lies: a link is what it leads to.
                target = os.path.join(os.path.realpath(parent), os.readlink(path))
                inside = os.path.relpath(os.path.normpath(target), os.path.realpath(top))
                facts[key] = ("link", os.fsdecode(inside), found.st_mtime_ns)
            elif stat.S_ISDIR(found.st_mode):
                facts[key] = ("directory", found.st_mtime_ns)
            elif stat.S_ISREG(found.st_mode):
                with open(path, "rb") as file:
                    facts[key] = ("file", file.read(), bool(found.st_mode & stat.S_IXUSR), found.st_mtime_ns)
            else:
                facts[key] = ("other",)
    return facts


def without_others(facts: Facts) -> Facts:
    """Without pipes and sockets."""
    return {path: fact for path, fact in facts.items() if fact != ("other",)}


def _write(path: bytes, chance: random.Random, *, is_sparse: bool) -> None:
    with open(path, "wb") as file:
        if is_sparse:
            file.truncate(100_000)
        else:
            file.write(chance.randbytes(chance.choice([0, 1, 20, 5000])))
    os.chmod(path, chance.choice([0o644, 0o755, 0o600]))


def _listen(path: Path) -> None:
    # The address has a length that a test's directory has not.
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{parent}/{path.name}")
    finally:
        os.close(parent)


def _set_times(directory: Path, chance: random.Random) -> None:
    for parent, directories, names in os.walk(os.fsencode(directory), topdown=False):
        for name in (*directories, *names):
            time_ns = chance.randint(1_000_000_000, 1_700_000_000) * 1_000_000_000 + chance.randint(0, 999_999_999)
            os.utime(os.path.join(parent, name), ns=(time_ns, time_ns), follow_symlinks=False)
