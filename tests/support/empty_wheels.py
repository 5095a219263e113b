"""Wheels that have a name, a version and needs, and no content."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path


def write_wheel(
    directory: Path, name: str, version: str, *, tag: str = "py3-none-any", needs: Iterable[str] = ()
) -> Path:
    """Write one; ``tag`` says on which Python and machine it can be installed."""
    base = f"{name.replace('-', '_')}-{version}"
    information = f"{base}.dist-info"
    header = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    path = directory / f"{base}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{information}/METADATA", header + "".join(f"Requires-Dist: {need}\n" for need in needs))
        wheel.writestr(f"{information}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{information}/RECORD", "")
    return path
