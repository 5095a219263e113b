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
    return find_script_dir(sys.path[0], sys.prefix)


def find_script_dir(first_path: str, python_prefix: str) -> Path:
    """The script's folder by Python's rules; the working directory for a notebook, and for a program of Python's own.

    Args:
        first_path: the first entry of ``sys.path``.
        python_prefix: where Python and its installed programs are.
    """
    directory = Path(first_path or ".").resolve()
    is_installed = directory.is_relative_to(Path(python_prefix).resolve())
    return Path.cwd() if is_installed or not directory.is_dir() else directory
