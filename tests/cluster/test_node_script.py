"""What the nodes of a cluster run to set themselves up, on this machine with another home directory."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.empty_wheels import write_wheel

from periflow_ray.cluster.wheels import REQUIREMENTS, write_own_wheel

REPOSITORY_DIR = Path(__file__).parents[2]
TOKEN = "box-7c1f0b"
NODE_SCRIPT = REPOSITORY_DIR / "periflow_ray" / "cluster" / "node" / "node.sh"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node's home directory, with the cluster's token."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(TOKEN)
    return tmp_path


def run_node(home: Path, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "PERIFLOW_PYTHON": python}
    return subprocess.run(["bash", str(NODE_SCRIPT), *arguments], env=env, capture_output=True, text=True, timeout=120)


def test_a_node_has_the_checkout_s_periflow_ray_beside_the_image_s_packages(home: Path) -> None:
    wheels_dir = home / "periflow-ray" / "wheels"
    wheels_dir.mkdir(parents=True)
    write_own_wheel(wheels_dir)
    write_wheel(wheels_dir, "of-mine", "1.5")
    (wheels_dir / REQUIREMENTS).write_text("of-mine>=1\n")
    for _ in range(2):  # A second `ray up` sets up again.
        done = run_node(home, "setup")
        assert done.returncode == 0, done.stderr
    python = home / "periflow-ray" / "env" / "bin" / "python"
    script = "import ray, periflow_ray.cluster, pathlib; print(pathlib.Path(periflow_ray.cluster.__file__).parent)"
    imported = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    package_dir = Path(imported.stdout.strip())
    assert package_dir.is_relative_to(home)
    version = "from importlib.metadata import version; print(version('of-mine'))"
    assert subprocess.run([python, "-c", version], capture_output=True, text=True, check=True).stdout == "1.5\n"
    assert (package_dir / "node" / "node.sh").is_file()
    assert stat.S_IMODE((home / ".ray" / "auth_token").stat().st_mode) == 0o600
    lines = (home / ".bashrc").read_text().splitlines()
    assert lines == [f". {home}/periflow-ray/profile.sh"]
    profile = (home / "periflow-ray" / "profile.sh").read_text()
    assert "RAY_AUTH_MODE=token" in profile
    assert TOKEN not in profile


def test_a_node_without_a_token_is_not_set_up(home: Path) -> None:
    (home / ".ray" / "auth_token").write_text("")
    done = run_node(home, "setup")
    assert (done.returncode, done.stderr) == (1, f"there is no token in {home}/.ray/auth_token\n")
    assert not (home / "periflow-ray").exists()


def test_an_unknown_part_is_refused(home: Path) -> None:
    done = run_node(home, "start")
    assert (done.returncode, done.stderr) == (2, "usage: node.sh setup | head | worker HEAD_ADDRESS\n")
