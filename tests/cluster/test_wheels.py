"""The wheels for the nodes, collected by a real pip from a folder that stands for a package index."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from support.empty_wheels import write_wheel

from periflow_ray.cluster import wheels as wheels_module
from periflow_ray.cluster.wheels import REQUIREMENTS, WantedWheels, collect_wheels, write_own_wheel
from periflow_ray.errors import ClusterError, UsageError

Collect = Callable[..., list[str]]
REPOSITORY_DIR = Path(__file__).parents[2]
# Made of code for one machine, as are most of the large ones.
COMPILED = "pyarrow"


def read_needs() -> dict[str, str]:
    """What periflow-ray names, for the clouds too, in the versions that are here."""
    found = [re.match(r"([\w.-]+)(.*)", need) for need in metadata.requires("periflow-ray") or ()]
    needs = [match for match in found if match and ("extra" not in match[2] or re.search("aws|azure", match[2]))]
    return {match[1]: metadata.version(match[1]).partition("+")[0] for match in needs}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Has all that periflow-ray needs, for two kinds of machines, and nothing else; PyTorch needs one more."""
    directory = tmp_path / "index"
    directory.mkdir()
    for name, version in read_needs().items():
        tags = ["py3-none-any"]
        if name == COMPILED:
            tags = [f"cp312-cp312-manylinux_2_28_{machine}" for machine in ("x86_64", "aarch64")]
        for tag in tags:
            write_wheel(directory, name, version, tag=tag, needs=["of-torch-alone"] if name == "torch" else [])
            # Another one than is here.
            write_wheel(directory, name, "9999", tag=tag, needs=["of-torch-alone"] if name == "torch" else [])
    write_wheel(directory, "of-torch-alone", "1.0")
    write_wheel(directory, "of-mine", "1.5", needs=["of-its-own"])
    write_wheel(directory, "of-its-own", "2.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return directory


@pytest.fixture
def collect(tmp_path: Path) -> Collect:
    """Collects, and says which files there are then."""

    def run(wanted: WantedWheels) -> list[str]:
        collect_wheels(tmp_path / "data" / "wheels", wanted, lambda text: None)
        return sorted(path.name for path in (tmp_path / "data" / "wheels").iterdir())

    return run


def find(names: list[str], package: str) -> list[str]:
    return [name for name in names if name.startswith(f"{package.replace('-', '_')}-")]


def test_they_are_of_the_versions_that_are_here_and_for_the_image(index: Path, collect: Collect) -> None:
    names = collect(WantedWheels())
    for package, version in read_needs().items():
        assert len(find(names, package)) == (package != "torch"), package
        assert all(f"-{version}-" in name for name in find(names, package))
    assert [name.rpartition("-")[2] for name in find(names, COMPILED)] == ["manylinux_2_28_x86_64.whl"]
    assert find(names, "of-torch-alone") == []
    assert len(find(names, "periflow-ray")) == 1


def test_pytorch_other_machines_and_packages_of_the_users_own_come_where_they_are_wanted(
    index: Path, collect: Collect, tmp_path: Path
) -> None:
    names = collect(WantedWheels(machines=("x86_64", "aarch64"), packages=("of-mine>=1",), has_torch=True))
    assert len(find(names, COMPILED)) == 2
    assert [len(find(names, package)) for package in ("torch", "of-torch-alone", "of-mine", "of-its-own")] == [1] * 4
    assert (tmp_path / "data" / "wheels" / REQUIREMENTS).read_text() == "of-mine>=1\n"


def test_needs_are_those_of_the_nodes_and_not_of_the_machine_that_collects(index: Path, collect: Collect) -> None:
    write_wheel(index, COMPILED, metadata.version(COMPILED), tag="cp399-cp399-manylinux_2_28_aarch64")
    there = {
        "of-there": "python_version >= '3.99'",
        "of-arm": "platform_machine == 'aarch64'",
        "of-linux": "platform_system == 'Linux'",
    }
    for name in there:
        write_wheel(index, name, "1.0")
    needs = [f"{name}; {marker}" for name, marker in there.items()]
    write_wheel(index, "of-many", "1.0", needs=[*needs, "of-here; python_version < '3.99'"])
    names = collect(WantedWheels(python="3.99", machines=("aarch64",), packages=("of-many",)))
    assert [len(find(names, name)) for name in (*there, "of-here")] == [1, 1, 1, 0]


def test_what_is_there_is_not_collected_again(
    index: Path, collect: Collect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = collect(WantedWheels())
    (own,) = (tmp_path / "data" / "wheels").glob("periflow_ray-*.whl")
    written_ns = own.stat().st_mtime_ns
    for wheel in index.iterdir():
        wheel.unlink()
    assert collect(WantedWheels()) == first
    assert own.stat().st_mtime_ns == written_ns
    own.rename(own.with_name("periflow_ray-0.0.1-py3-none-any.whl"))
    assert collect(WantedWheels()) == first
    # Something else is wanted, and what was there stays until it is.
    with pytest.raises(ClusterError, match="cannot be collected"):
        collect(WantedWheels(packages=("of-mine",)))
    assert collect(WantedWheels()) == first
    monkeypatch.setattr(wheels_module.metadata, "version", lambda name: "1.0")
    with pytest.raises(ClusterError, match="No matching distribution"):
        collect(WantedWheels())


def test_a_collection_that_was_cut_off_is_made_anew(index: Path, collect: Collect, tmp_path: Path) -> None:
    names = collect(WantedWheels())
    directory = tmp_path / "data" / "wheels"
    kept = directory.rename(tmp_path / "kept")
    directory.mkdir()
    (directory / ".new-1").mkdir()
    (directory / ".new-1" / "half.whl").touch()
    # As it is while the new wheels come to their place.
    (directory / "wanted.json").touch()
    assert collect(WantedWheels()) == names == sorted(path.name for path in kept.iterdir())


def test_two_collections_at_once_are_one_after_the_other(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "wheels"
    download, at_once, most = wheels_module._download, [0], [0]

    def count(*given: Any) -> None:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.2)
        download(*given)
        at_once[0] -= 1

    monkeypatch.setattr(wheels_module, "_download", count)
    wanted = [WantedWheels(), WantedWheels(machines=("x86_64", "aarch64"))] * 2
    with ThreadPoolExecutor(len(wanted)) as pool:
        list(pool.map(lambda each: collect_wheels(directory, each, lambda text: None), wanted))
    assert most == [1]
    collect_wheels(directory, wanted[1], lambda text: None)
    assert len(list(directory.glob(f"{COMPILED}-*.whl"))) == 2
    assert list(directory.glob(".*")) == []


def test_a_folder_with_anything_else_is_left_alone(index: Path, collect: Collect, tmp_path: Path) -> None:
    directory = tmp_path / "data" / "wheels"
    directory.mkdir(parents=True)
    (directory / "thesis.tex").write_text("all of it")
    (directory / "of_others-1.0-py3-none-any.whl").touch()
    with pytest.raises(UsageError, match=r"has other files \(of_others-1.0-py3-none-any.whl, thesis.tex\)"):
        collect(WantedWheels(has_needs=False))
    assert sorted(path.name for path in directory.iterdir()) == ["of_others-1.0-py3-none-any.whl", "thesis.tex"]
    # What comes into a folder of wheels later stays, too.
    for path in directory.iterdir():
        path.unlink()
    collect(WantedWheels(has_needs=False))
    (directory / "thesis.tex").write_text("all of it")
    assert "thesis.tex" in collect(WantedWheels(packages=("of-mine",), has_needs=False))
    with pytest.raises(UsageError, match="wheels cannot be put into"):
        collect_wheels(directory / "thesis.tex", WantedWheels(), print)


def test_its_own_wheel_can_be_installed_and_has_all_of_it(tmp_path: Path) -> None:
    wheel = write_own_wheel(tmp_path)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    subprocess.run([*command, tmp_path / "installed", wheel], check=True, capture_output=True, timeout=120)
    package = REPOSITORY_DIR / "periflow_ray"
    expected = {path.relative_to(package) for path in package.rglob("*") if path.is_file()}
    installed = tmp_path / "installed" / "periflow_ray"
    found = {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()}
    assert {path for path in found if "__pycache__" not in path.parts} == {
        path for path in expected if "__pycache__" not in path.parts
    }
    assert (tmp_path / "installed" / "bin" / "periflow-ray").is_file()
    with zipfile.ZipFile(wheel) as content:
        assert content.testzip() is None
