"""``scripts/bench`` as tests run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY_DIR = Path(__file__).parents[2]
# As scripts/bench has it.
MODULE_DIRS = os.pathsep.join(str(REPOSITORY_DIR / name) for name in ("scripts", "tests"))


def measure(
    tmp_path: Path, figure: str, *, timeout_s: float = 200, **env: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows as JSON, and the lines of the table."""
    target = tmp_path / "figures.json"
    path = os.pathsep.join(filter(None, (MODULE_DIRS, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "bench_figures", figure, "--json", str(target)],
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(target.read_text()), done.stdout.splitlines()
