"""Leaves out a setup that only installs where it has succeeded on this node for this job, and nothing of it changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from periflow_ray.plan.setup_lines import InstallSetup
from periflow_ray.spec.requirements import read_requirements


def build_command(setup: InstallSetup, mark_dir: Path, working_dir: Path) -> str | None:
    """The bash text of a command whose setup only installs; None where its requirement files cannot be read now.

    Args:
        setup: with the paths that the command sees.
        mark_dir: what was installed goes with it; in it lies a mark for each setup that has succeeded.
        working_dir: where the command begins.
    """
    contents = [_describe_file(working_dir / name) for name in setup.requirement_files]
    if None in contents:
        return None
    digest = hashlib.sha256(json.dumps([setup.lines, contents]).encode()).hexdigest()[:16]
    mark = mark_dir / f"setup-{digest}"
    return setup.build_short_text() if mark.exists() else setup.build_text(str(mark))


def rewrite_setup(setup: InstallSetup, rewrite: Callable[[str], str]) -> InstallSetup:
    """A setup with each of its texts changed."""
    return InstallSetup(
        lines=tuple(map(rewrite, setup.lines)),
        kept=tuple(map(rewrite, setup.kept)),
        requirement_files=tuple(map(rewrite, setup.requirement_files)),
        run=rewrite(setup.run),
    )


def _describe_file(path: Path) -> list[str] | None:
    """What a requirement file asks for, with the files that it includes."""
    found = read_requirements(path.name, lambda name: (path.parent / name).read_text("utf-8"))
    if any(os.path.isdir(path.parent / local) for local in found.local_paths):
        return None
    return None if found.problems else found.lines
