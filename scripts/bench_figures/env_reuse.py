"""How long a job with requirements waits for its environment on a node that has it, against making it."""

from __future__ import annotations

import os
import tempfile
import time
import zipfile
from pathlib import Path

from bench_figures.row import Goal, Row, row_of_pairs
from periflow_ray.runtime.environments.install import Installer
from periflow_ray.runtime.environments.layer import Layer
from periflow_ray.runtime.environments.python_environment import open_environment
from periflow_ray.spec.python import PythonSpec
from periflow_ray.store.datasets.cache import DatasetCache
from periflow_ray.store.read_only import remove_tree

# What transformers, datasets and all that they need have without torch is some 10,000 files.
NUM_PACKAGES = 20
NUM_MODULES = 500
NUM_REPEATS = 5
GOAL = Goal("<", 0.5, "s")


def measure_env_reuse() -> list[Row]:
    """Seconds until the Python of the second job with the same requirements is ready, and of the first one."""
    with tempfile.TemporaryDirectory(prefix="periflow-bench-") as directory:
        workspace = Path(directory)
        names = [_write_wheel(workspace, number) for number in range(NUM_PACKAGES)]
        (workspace / "requirements.txt").write_text("".join(f"{name}\n" for name in names))
        first = [_open(workspace, "environments", 0)]
        again = [_open(workspace, "environments", number) for number in range(1, NUM_REPEATS + 1)]
        # Read-only, as what jobs share is.
        remove_tree(workspace / "environments")
        return [row_of_pairs("env_reuse", again, first * NUM_REPEATS, "s", GOAL)]


def _open(workspace: Path, cache: str, number: int) -> float:
    variables = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(workspace), "PIP_CONFIG_FILE": os.devnull}
    installer = Installer({**os.environ, **variables}, workspace, lambda line: None)
    spec = PythonSpec(requirements="requirements.txt")
    start_s = time.perf_counter()
    environment = open_environment(
        spec, workspace, installer, tell=lambda text: None, cache=DatasetCache(workspace / cache)
    )
    Layer(workspace / f"job-{number}", environment.below.minor_version).write(environment.below)
    took_s = time.perf_counter() - start_s
    environment.close()
    return took_s


def _write_wheel(directory: Path, number: int) -> str:
    name = f"benchmark_{number}"
    facts = f"{name}-1.0.dist-info"
    contents = {f"{name}/module_{module}.py": f"value = {module}\n" for module in range(NUM_MODULES // 2)}
    contents |= {f"{name}/data_{module}.txt": "\n" for module in range(NUM_MODULES // 2)}
    contents[f"{facts}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    contents[f"{facts}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    contents[f"{facts}/RECORD"] = "".join(f"{path},,\n" for path in (*contents, f"{facts}/RECORD"))
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in contents.items():
            wheel.writestr(path, text)
    return name
