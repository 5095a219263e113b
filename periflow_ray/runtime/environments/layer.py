"""A directory that is a Python environment of its own above others, which it leaves as they are.

It is what ``python -m venv`` makes, written at once because each job has one: ``pyvenv.cfg``, links to the
interpreter, and a ``.pth`` file by which the packages below are found. ``pip`` installs into it, puts newer versions
before those below, and takes nothing of theirs away. Scripts of the packages below, such as ``torchrun``, are there
once more with its interpreter, so that what they start sees all of it.
"""

from __future__ import annotations

import contextlib
import os
import re
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BELOW_FILE = "_periflow_packages_below.pth"
_USER_DIR = "user"
_START_BYTES = 1024
_INTERPRETER = b"<interpreter>"


@dataclass(frozen=True)
class PythonBelow:
    """A Python whose packages a layer builds on.

    Args:
        interpreter: the interpreter itself, not that of a virtual environment.
        version: ``3.11.7``.
        package_dirs: where its packages are, in the order in which they are found.
        script_dirs: where scripts of its packages are.
        program_dirs: of what its scripts name as their interpreter.
    """

    interpreter: str
    version: str
    package_dirs: tuple[str, ...]
    script_dirs: tuple[str, ...] = ()
    program_dirs: tuple[str, ...] = ()

    @property
    def own_program_dirs(self) -> tuple[str, ...]:
        """Where its own programs are, but for those of a Python that the system's programs are beside."""
        return tuple(d for d in self.script_dirs if d not in ("/bin", "/usr/bin", "/usr/local/bin"))

    @property
    def minor_version(self) -> str:
        """``3.11``."""
        return ".".join(self.version.split(".")[:2])


def find_cluster_python() -> PythonBelow:
    """The Python that runs this process, with the packages that it would have without Ray's additions."""
    package_dirs, script_dirs = [*site.getsitepackages()], [sysconfig.get_path("scripts")]
    if site.ENABLE_USER_SITE:
        package_dirs.insert(0, site.getusersitepackages())
        script_dirs.insert(0, os.path.join(site.getuserbase(), "bin"))
    interpreter = getattr(sys, "_base_executable", sys.executable)
    return PythonBelow(
        interpreter=interpreter,
        version=".".join(map(str, sys.version_info[:3])),
        package_dirs=tuple(directory for directory in package_dirs if os.path.isdir(directory)),
        script_dirs=tuple(script_dirs),
        program_dirs=tuple(dict.fromkeys([os.path.dirname(sys.executable), os.path.dirname(interpreter)])),
    )


class Layer:
    """An environment in a directory; it need not exist yet."""

    def __init__(self, directory: Path, minor_version: str) -> None:
        self.directory = directory
        self.bin_dir = directory / "bin"
        self.python = self.bin_dir / "python"
        self.package_dir = directory / "lib" / f"python{minor_version}" / "site-packages"
        self.user_dir = directory / _USER_DIR
        self.user_package_dir = self.user_dir / "lib" / f"python{minor_version}" / "site-packages"
        """Where ``pip install --user`` puts packages."""

    def write(self, below: PythonBelow, *, has_user_dir: bool = True) -> None:
        """Make it, empty, above ``below``.

        Args:
            has_user_dir: ``pip install --user`` has a place in it.
        """
        self.bin_dir.mkdir(parents=True)
        self.package_dir.mkdir(parents=True)
        if has_user_dir:
            self.user_package_dir.mkdir(parents=True)
        if not (self.directory / "lib64").exists():
            (self.directory / "lib64").symlink_to("lib")
        for name in ("python", "python3", f"python{below.minor_version}"):
            (self.bin_dir / name).symlink_to(below.interpreter)
        # `False` and `false` are the same to Python; to pip only the latter means that `--user` would be of no use.
        (self.directory / "pyvenv.cfg").write_text(
            f"home = {os.path.dirname(below.interpreter)}\n"
            "include-system-site-packages = False\n"
            f"version = {below.version}\n"
        )
        # As Python itself takes them in, with the `.pth` files in them.
        found = [str(self.user_package_dir), *below.package_dirs] if has_user_dir else below.package_dirs
        lines = [f"import site; site.addsitedir({path!r})" for path in found]
        (self.package_dir / _BELOW_FILE).write_text("\n".join(lines) + "\n")
        self._write_scripts(below)

    @property
    def program_dirs(self) -> tuple[str, ...]:
        """Where its programs are, for ``PATH``."""
        return (str(self.bin_dir), str(self.user_dir / "bin"))

    def as_below(self, below: PythonBelow, *, made_in: str) -> PythonBelow:
        """What another layer above this one builds on.

        Args:
            below: what this one was written above.
            made_in: where its programs were when it was made, which its scripts name.
        """
        return PythonBelow(
            interpreter=below.interpreter,
            version=below.version,
            # The `.pth` file in it leads to those further down.
            package_dirs=(str(self.package_dir),),
            script_dirs=(str(self.bin_dir), *below.script_dirs),
            program_dirs=(made_in, *below.program_dirs),
        )

    def _write_scripts(self, below: PythonBelow) -> None:
        for name, head, content in _find_scripts(below):
            self._write_script(name, head.replace(_INTERPRETER, str(self.python).encode()) + content)
        for name in ("pip", "pip3"):
            text = f"#!{self.python}\nimport sys\nfrom pip._internal.cli.main import main\nsys.exit(main())\n"
            self._write_script(name, text.encode())

    def _write_script(self, name: str, content: bytes) -> None:
        # The first of that name is the one that is found.
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(self.bin_dir / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)


def _find_scripts(below: PythonBelow) -> Iterator[tuple[str, bytes, bytes]]:
    """Scripts that name the Python below as theirs: their first lines, with ``_INTERPRETER`` for it, and the rest.

    Where the path of an interpreter is too long for a ``#!`` line, or has blanks, pip writes two lines of sh.
    """
    if not below.program_dirs:
        return
    named = b"|".join(re.escape(directory.encode()) for directory in below.program_dirs)
    interpreter = re.compile(b"(?:" + named + rb")/python[0-9.]*(?=[\s'\"])")
    for directory in below.script_dirs:
        if not os.path.isdir(directory):
            continue
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    with open(entry.path, "rb", buffering=0) as file:
                        start = file.read(_START_BYTES)
                        if not start.startswith(b"#!"):
                            continue
                        num_lines = 2 if start.startswith(b"#!/bin/sh\n") else 1
                        *first_lines, rest = start.split(b"\n", num_lines)
                        head, num_found = interpreter.subn(_INTERPRETER, b"\n".join(first_lines) + b"\n")
                        if num_found:
                            yield entry.name, head, rest + file.read()
                except OSError:  # A directory, or a link that leads nowhere.
                    continue
