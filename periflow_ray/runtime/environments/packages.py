"""Which packages are installed in directories, by the names of what pip leaves there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

_INSTALLED = re.compile(r"(?P<name>[^-]+(?:-[^-0-9][^-]*)*)-(?P<version>[^-]+)(?:-[^-]+)*\.(?:dist-info|egg-info)")


def list_packages(directories: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """``name==version`` of each package, sorted; where one is in two directories the first one counts."""
    found: dict[str, str] = {}
    for directory in directories:
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        for entry in sorted(names):
            match = _INSTALLED.fullmatch(entry)
            if match is not None:
                name = re.sub(r"[-_.]+", "-", match["name"]).lower()
                found.setdefault(name, f"{name}=={match['version']}")
    return tuple(sorted(found.values()))
