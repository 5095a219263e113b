"""A torch that is too new for the driver is named before it trains on the CPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from periflow_ray.runtime.environments.cuda import describe_mismatch, find_driver_cuda, find_torch
from periflow_ray.runtime.ray_train.train_run import describe_version_mismatch


def write_torch(directory: Path, cuda: str) -> str:
    (directory / "torch").mkdir(parents=True)
    (directory / "torch" / "version.py").write_text(
        f"from typing import Optional\n\n__version__ = '2.9.0+x'\ndebug = False\ncuda: Optional[str] = {cuda}\n"
    )
    return str(directory)


def test_the_first_torch_that_is_found_counts(tmp_path: Path) -> None:
    first, second = write_torch(tmp_path / "a", "'13.0'"), write_torch(tmp_path / "b", "'12.8'")
    assert find_torch(["/nowhere", first, second]) == ("2.9.0+x", (13, 0))
    assert find_torch([write_torch(tmp_path / "cpu", "None"), first]) is None


def test_the_installed_torch_is_read() -> None:
    import torch

    found = find_torch([str(Path(torch.__file__).parents[1])])
    assert (None if found is None else found[0]) == (torch.__version__ if torch.version.cuda else None)


def test_a_driver_says_its_cuda(tmp_path: Path) -> None:
    source, library = tmp_path / "driver.c", tmp_path / "driver.so"
    source.write_text("int cuDriverGetVersion(int *version) { *version = 12040; return 0; }\n")
    try:
        subprocess.run(["cc", "-shared", "-o", library, source], check=True)
    except FileNotFoundError:
        pytest.skip("there is no C compiler")
    assert find_driver_cuda(str(library)) == (12, 4)
    assert find_driver_cuda("/nowhere/libcuda.so.1") is None


def test_only_a_later_major_version_does_not_run() -> None:
    assert describe_mismatch(("2.9.0", (12, 8)), (12, 2), 0) is None
    assert describe_mismatch(("2.9.0", (12, 8)), (13, 0), 0) is None
    assert describe_mismatch(None, (12, 2), 0) is None
    assert describe_mismatch(("2.9.0", (13, 0)), None, 0) is None
    assert describe_mismatch(("2.9.0", (13, 0)), (12, 4), 3) == (
        "torch 2.9.0 on node 3 is built for CUDA 13.0, and the NVIDIA driver there is for CUDA 12.4 at most: torch "
        "will find no GPU. Ask for a torch of CUDA 12 in job_setting.python, or use machines with a newer driver"
    )


def test_another_python_than_the_clusters_is_named() -> None:
    text = (
        "Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.12.4\nThis process on node "
        "10.0.0.1:0 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
    )
    assert describe_version_mismatch(text, "10.0.0.1:6379") == (
        "the Ray cluster at 10.0.0.1:6379 ($RAY_ADDRESS) has Python 3.12.4 and Ray 2.60.0, and this process has Python "
        "3.11.7 and Ray 2.60.0. A function travels only between the same ones: run the script with Python 3.12.4 and "
        "ray==2.60.0, or unset RAY_ADDRESS."
    )
    assert describe_version_mismatch("no answer", "10.0.0.1:6379") is None
