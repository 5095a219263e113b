"""Wheels of one module, made on the spot: a wheel is a zip file."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def make_wheel(
    directory: Path,
    name: str,
    version: str,
    *,
    requires: Sequence[str] = (),
    scripts: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
) -> Path:
    """A wheel whose module says its version.

    Args:
        requires: packages that it needs.
        scripts: its programs: name -> ``module:function``.
        files: what is in it instead: path -> text.
    """
    facts = f"{name}-{version}.dist-info"
    contents = dict(files or {f"{name}.py": f"__version__ = {version!r}\n"})
    needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
    contents[f"{facts}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
    contents[f"{facts}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    if scripts:
        programs = "".join(f"{program} = {function}\n" for program, function in scripts.items())
        contents[f"{facts}/entry_points.txt"] = f"[console_scripts]\n{programs}"
    contents[f"{facts}/RECORD"] = "".join(f"{path},,\n" for path in (*contents, f"{facts}/RECORD"))
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        for path, text in contents.items():
            packed.writestr(path, text)
    return wheel


def offline(directory: Path) -> dict[str, str]:
    """Variables by which pip and uv take packages from a directory of wheels, and from nowhere else."""
    return {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_CONSTRAINT": "",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(directory),
        "UV_NO_INDEX": "1",
        "UV_FIND_LINKS": str(directory),
        "UV_OFFLINE": "1",
    }
