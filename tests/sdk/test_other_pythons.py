"""The SDK in a command that uses another Python, with nothing installed: a conda or virtual environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.without_linux import WITHOUT_LINUX

import periflow_ray
from periflow_ray.sdk import wire

PACKAGE_DIR = Path(periflow_ray.__file__).parent
SHIM_DIR = PACKAGE_DIR / "sdk" / "shim"

SCRIPT = """
import periflow_sdk as pf
import periflow_ray

assert pf.init is periflow_ray.init
pf.init(total_train_steps=3)
for step in range(3):
    with pf.train_step():
        pf.metric({"iteration": step, "loss": 0.5})
    assert not pf.is_emergency_save()
"""


def find_pythons() -> list[str]:
    """One interpreter of each version from 3.8 on that this machine has, this one's among them."""
    candidates = [shutil.which(f"python3.{minor}") for minor in range(8, 20)]
    candidates += map(str, sorted(Path.home().glob(".pyenv/versions/3.*/bin/python")))
    found = {sys.version_info[:2]: sys.executable}
    for path in filter(None, candidates):
        asked = subprocess.run(
            [path, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True
        ).stdout.split()
        if len(asked) == 2 and (version := (int(asked[0]), int(asked[1]))) >= (3, 8):
            found.setdefault(version, path)
    return [path for _, path in sorted(found.items())]


@pytest.fixture(scope="module")
def pythons() -> list[str]:
    return find_pythons()


def run_script(python: str, directory: Path, **variables: str) -> None:
    # Without the site packages, as in a fresh environment; PYTHONPATH is the job's.
    done = subprocess.run(
        [python, "-S", "-c", f"import sitecustomize\n{SCRIPT}"],
        cwd=directory,
        env={"PATH": os.defpath, "PYTHONPATH": str(SHIM_DIR), "PYTHONDONTWRITEBYTECODE": "1", **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), python


def test_outside_a_job_each_python_writes_its_metrics_to_a_file(pythons, tmp_path):
    for number, python in enumerate(pythons):
        directory = tmp_path / str(number)
        directory.mkdir()
        run_script(python, directory)
        (log,) = directory.glob("periflow_trainer_*.log")
        assert [json.loads(line)["iteration"] for line in log.read_text().splitlines()] == [0, 1, 2]


def test_outside_a_job_it_needs_nothing_that_only_linux_has(tmp_path):
    env = {"PATH": os.defpath, "PYTHONPATH": str(SHIM_DIR)}
    subprocess.run([sys.executable, "-c", WITHOUT_LINUX + SCRIPT], cwd=tmp_path, env=env, check=True, timeout=60)
    (log,) = tmp_path.glob("periflow_trainer_*.log")
    assert len(log.read_text().splitlines()) == 3


def test_in_a_job_each_python_speaks_to_its_member(pythons, tmp_path):
    for number, python in enumerate(pythons):
        path = tmp_path / f"{number}.sock"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen()
            run_script(python, tmp_path, PERIFLOW_ENABLED="1", PERIFLOW_SESSION=str(path), RANK="0", WORLD_SIZE="1")
            connection, _ = server.accept()
            with connection:
                messages = list(wire.read_messages(connection))
        assert (messages[0]["kind"], messages[0]["total_train_steps"], messages[-1]["kind"]) == ("hello", 3, "bye")


@pytest.mark.long
def test_the_package_compiles_on_each_python_that_it_supports(pythons, tmp_path):
    script = "import compileall, sys; sys.exit(not compileall.compile_dir(sys.argv[1], quiet=1, force=True))"
    for python in pythons:
        supported = "import sys; sys.exit(sys.version_info < (3, 10))"
        if subprocess.run([python, "-c", supported]).returncode == 0:
            with_cache = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
            assert subprocess.run([python, "-c", script, str(PACKAGE_DIR)], env=with_cache).returncode == 0, python
