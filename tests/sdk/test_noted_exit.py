"""The exit that stands for ``SystemExit`` in a job's processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import periflow_ray.sdk

PROGRAM = """
import pickle, sys
sys.path.insert(0, sys.argv[1])
import periflow_exit
periflow_exit.note_exits()
try:
    sys.exit(3)
except SystemExit as err:
    there = pickle.loads(pickle.dumps(err))
    print(type(there) is SystemExit, there.code, periflow_exit.ended_with)
"""


def test_an_exit_comes_to_another_process_as_what_it_stands_for() -> None:
    shim_dir = Path(periflow_ray.sdk.__file__).parent / "shim"
    done = subprocess.run([sys.executable, "-c", PROGRAM, shim_dir], capture_output=True, text=True, check=True)
    assert done.stdout == "True 3 None\n"
