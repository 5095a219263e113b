"""Finds what lies beside a Python job's script, so that its function can import it on other machines."""

from __future__ import annotations

import sys
from pathlib import Path

from periflow_ray.submit.workspace import Workspace, scan_workspace


def scan_modules() -> Workspace:
    """The folder from which the running script imports its own modules, with the rules and the limit of a workspace.

    Raises:
        WorkspaceError: it is too large, or unreadable.
    """
    return scan_workspace(find_modules())


def find_modules() -> Path:
    """The folder from which the running script imports its own modules."""
    main = sys.modules["__main__"]
    # A module that python -m runs has a spec, and imports from the working directory.
    script = None if main.__spec__ is not None else getattr(main, "__file__", None)
    return find_script_dir(script, sys.prefix)


def find_script_dir(script: str | None, python_prefix: str) -> Path:
    """The script's folder by Python's rules; the working directory for a notebook, and for a program of Python's own.

    ``sys.path`` does not tell: Ray puts a folder of its own before the script's.

    Args:
        script: the file that runs, if it is one.
        python_prefix: where Python and its installed programs are.
    """
    directory = Path.cwd() if script is None else Path(script).resolve().parent
    is_installed = directory.is_relative_to(Path(python_prefix).resolve())
    return Path.cwd() if is_installed or not directory.is_dir() else directory
