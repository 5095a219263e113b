"""Python runs this at its start in a job's command: lines of several processes do not mix inside a line.

The processes of a node share one pipe, and are told to print at once (PYTHONUNBUFFERED, torchrun's ``python -u``), for
which Python writes a line and its end one after the other. From here on it writes them together, and as soon.
"""

import importlib.machinery
import importlib.util
import io
import os
import sys


def _write_whole_lines() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.isatty():
            stream.reconfigure(line_buffering=True, write_through=False)


def _run_shadowed() -> None:
    """Run the module of this name that Python would have found without this one."""
    own_dir = os.path.dirname(os.path.abspath(__file__))
    path = [entry for entry in sys.path if os.path.abspath(entry) != own_dir]
    spec = importlib.machinery.PathFinder.find_spec(__name__, path)
    if spec is not None and spec.loader is not None:
        sys.modules[__name__] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


_write_whole_lines()
_run_shadowed()
