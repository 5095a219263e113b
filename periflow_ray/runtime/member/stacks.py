"""The Python stacks of a process that does not move, read from outside with py-spy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

_TIMEOUT_S = 20.0


def dump_stacks(pid: int) -> list[str]:
    """The stacks of all threads as lines; one line with the reason if they cannot be read."""
    beside_python = Path(sys.executable).with_name("py-spy")
    program = str(beside_python) if beside_python.exists() else shutil.which("py-spy")
    if program is None:
        return [f"the stack of process {pid} cannot be read: py-spy is not installed"]
    try:
        done = subprocess.run(
            [program, "dump", "--pid", str(pid)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as err:
        return [f"the stack of process {pid} cannot be read: {err}"]
    return (done.stdout or done.stderr).splitlines()
