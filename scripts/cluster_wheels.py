"""Wheels of periflow-ray and what it needs, for the nodes of a cluster: see ``scripts/cluster-wheels --help``."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WHEELS_DIR = Path("cluster_configs/wheels")
# What the oldest images of cluster_configs/ can run.
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux_2_12", "manylinux2010", "manylinux1")


def main() -> None:
    """Fill the folder anew."""
    parser = argparse.ArgumentParser(prog="scripts/cluster-wheels", description=__doc__)
    parser.add_argument("packages", nargs="*", help="packages of your own, as pip takes them")
    parser.add_argument("--python", default="3.12", metavar="VERSION", help="the image's Python (default %(default)s)")
    parser.add_argument("--machine", default="x86_64", choices=("x86_64", "aarch64"), help="default %(default)s")
    parser.add_argument("--torch", action="store_true", help="PyTorch too, which GPU images mostly have (gigabytes)")
    parser.add_argument("--only-own", action="store_true", help="nothing but periflow-ray, for images with the rest")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        new = Path(directory)
        own = build_own_wheel(new)
        if not options.only_own:
            target = target_options(options.python, options.machine)
            wanted = [f"{own}[aws,azure]", *options.packages]
            pip("download", "--no-deps", "--dest", directory, *target, *resolve(wanted, target, options.torch))
        shutil.rmtree(WHEELS_DIR, ignore_errors=True)
        shutil.copytree(new, WHEELS_DIR)
    num_mb = sum(path.stat().st_size for path in WHEELS_DIR.iterdir()) / 1e6
    print(f"{WHEELS_DIR}: {len(list(WHEELS_DIR.iterdir()))} wheels, {num_mb:.0f} MB")


def build_own_wheel(directory: Path) -> Path:
    """The wheel of this checkout."""
    # PyTorch needs what builds it, so it is here; an environment of its own would need a package index.
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(directory), ".")
    (wheel,) = directory.glob("periflow_ray-*.whl")
    return wheel


def target_options(python_version: str, machine: str) -> list[str]:
    """Options of pip for wheels of another machine."""
    platforms = [option for name in PLATFORMS for option in ("--platform", f"{name}_{machine}")]
    return ["--only-binary", ":all:", "--python-version", python_version, *platforms]


def resolve(wanted: Iterable[str], target: Iterable[str], has_torch: bool) -> list[str]:
    """What pip would install there besides periflow-ray, as ``name==version``."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        options = ["--dry-run", "--ignore-installed", "--target", directory, "--report", str(report)]
        if not has_torch:
            write_stand_in(Path(directory), "torch", f"{read_constraint('torch')}+image")
            options += ["--find-links", directory]
        pip("install", *options, *target, "--constraint", "constraints.txt", *wanted)
        plan: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    packages = {item["metadata"]["name"]: item["metadata"]["version"] for item in plan}
    left_out = {"periflow-ray", *(() if has_torch else ("torch",))}
    return [f"{name}=={version}" for name, version in sorted(packages.items()) if name not in left_out]


def read_constraint(name: str) -> str:
    """The version of a package that the tests pass with."""
    found = re.search(rf"^{re.escape(name)}==(\S+)$", Path("constraints.txt").read_text(), re.MULTILINE)
    assert found is not None, name
    return found[1]


def write_stand_in(directory: Path, name: str, version: str) -> None:
    """A wheel without content or needs, newer than the real one: pip takes it for what the image has."""
    information = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")


def pip(*arguments: str) -> None:
    """Run pip, with its own words for what goes wrong."""
    done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, "--quiet"])
    if done.returncode != 0:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
