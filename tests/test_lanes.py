"""Tests that start Ray are never run beside each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.lanes import RAY_LANE

TESTS_DIR = Path(__file__).parent
CONFTEST = """
import pytest
pytest_plugins = ["support.lanes"]

@pytest.fixture(autouse=True)
def _worker(request, worker_id):
    with (request.config.rootpath / f"{worker_id}.txt").open("a") as file:
        print(request.node.nodeid, file=file)
"""
# This file is not in that lane itself.
RAY_FILE = f"""
import pytest

@pytest.mark.{RAY_LANE}
@pytest.mark.parametrize("number", range(3))
def test_ray(number): pass
"""
LIGHT_FILE = """
import pytest

@pytest.mark.parametrize("number", range(20))
def test_light(number): pass
"""


def test_all_that_start_ray_run_in_one_process_and_first_and_others_beside_them(tmp_path: Path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = ray: starts Ray\n")
    for name in ("test_b.py", "test_d.py"):
        (tmp_path / name).write_text(RAY_FILE)
    for name in ("test_a.py", "test_c.py"):
        (tmp_path / name).write_text(LIGHT_FILE)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--numprocesses", "2", "--dist", "loadgroup", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TESTS_DIR)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "46 passed" in done.stdout
    by_process = [path.read_text().splitlines() for path in sorted(tmp_path.glob("gw*.txt"))]
    ray_tests = [f"test_{file}.py::test_ray[{number}]" for file in "bd" for number in range(3)]
    (ray_lane,) = [tests for tests in by_process if set(tests) & set(ray_tests)]
    assert ray_lane[: len(ray_tests)] == ray_tests
    assert len(by_process) == 2
