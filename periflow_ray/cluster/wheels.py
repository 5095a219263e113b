"""Wheels of periflow-ray and what it needs: nodes are set up from them, and need no package index.

Its own wheel is made of the package that runs here, whether that is a checkout or was installed. The rest comes from
wherever pip has its packages, in the versions that are installed here.
"""

from __future__ import annotations

import base64
import fcntl
import filecmp
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from periflow_ray.errors import ClusterError, UsageError

IMAGE_PYTHON = "3.12"
MACHINES = ("x86_64", "aarch64")
# Packages of the user's own, which nodes install too; see node.sh.
REQUIREMENTS = "requirements.txt"
_NAME = "periflow-ray"
_EXTRAS = "[aws,azure]"
_WANTED = "wanted.json"
_NEW_PREFIX = ".new-"
# What the oldest images of cluster_configs/ can run.
_PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux_2_12", "manylinux2010", "manylinux1")
_NUM_LINES = 8
# pip takes the markers of requirements for those of the machine that it runs on, whatever platform it is asked for.
_PIP_FOR_TARGET = """
import json, runpy, sys
from pip._vendor.packaging import markers
here, target = markers.default_environment(), json.loads(sys.argv.pop(1))
markers.default_environment = lambda: {**here, **target}
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
# The same files are the same wheel, so that Ray does not copy it again.
_ZIP_TIME = (2020, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class WantedWheels:
    """What the wheels are for.

    Args:
        machines: of MACHINES.
        packages: the user's own, as pip takes them.
        has_torch: PyTorch too, which not all images have; gigabytes.
        has_needs: what periflow-ray needs, and not it alone.
    """

    python: str = IMAGE_PYTHON
    machines: tuple[str, ...] = MACHINES[:1]
    packages: tuple[str, ...] = ()
    has_torch: bool = False
    has_needs: bool = True


def collect_wheels(directory: Path, wanted: WantedWheels, tell: Callable[[str], None]) -> None:
    """Fill a folder with what is wanted; only its own wheel is made anew where the rest is there from before.

    Raises:
        UsageError: the folder has something else, or cannot be written.
        ClusterError: pip cannot find or download something.
    """
    _claim(directory)
    with open(directory / _WANTED, "rb") as claimed:
        # One at a time: the kernel lets go of it when this process ends, however it ends.
        fcntl.flock(claimed, fcntl.LOCK_EX)
        _fill(directory, wanted, tell)


def _fill(directory: Path, wanted: WantedWheels, tell: Callable[[str], None]) -> None:
    pins = _find_pins()
    stamp = json.dumps({"wanted": asdict(wanted), "pins": pins}, indent=1)
    for cut_off in directory.glob(f"{_NEW_PREFIX}*"):
        shutil.rmtree(cut_off, ignore_errors=True)
    if not _holds(directory / _WANTED, stamp):
        with tempfile.TemporaryDirectory(dir=directory, prefix=_NEW_PREFIX) as temporary:
            new = Path(temporary)
            if wanted.has_needs:
                what = "PyTorch among them: gigabytes, many minutes" if wanted.has_torch else "about 220 MB, a minute"
                tell(f"collecting the wheels for the nodes ({what})")
                for machine in wanted.machines:
                    _download(new, wanted, pins, machine)
            if wanted.packages:
                (new / REQUIREMENTS).write_text("".join(f"{package}\n" for package in wanted.packages))
            # What is cut off from here on is known to be incomplete.
            (directory / _WANTED).write_text("")
            for older in [*directory.glob("*.whl"), directory / REQUIREMENTS]:
                older.unlink(missing_ok=True)
            for path in new.iterdir():
                path.rename(directory / path.name)
            (directory / _WANTED).write_text(stamp)
    write_own_wheel(directory)


def write_own_wheel(directory: Path) -> Path:
    """Write the wheel of the periflow-ray that runs here, in place of an older one."""
    distribution = metadata.distribution(_NAME)
    base = f"{_NAME.replace('-', '_')}-{distribution.version}"
    wheel_path = directory / f"{base}-py3-none-any.whl"
    package_dir = Path(__file__).parents[1]
    files = {
        f"{package_dir.name}/{path.relative_to(package_dir).as_posix()}": path.read_bytes()
        for path in sorted(package_dir.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    information = f"{base}.dist-info"
    # A checkout that was built has the same under the other name.
    about = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    files[f"{information}/METADATA"] = about.encode()
    files[f"{information}/entry_points.txt"] = (distribution.read_text("entry_points.txt") or "").encode()
    files[f"{information}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{name},sha256={_hash(content)},{len(content)}\n" for name, content in files.items())
    files[f"{information}/RECORD"] = f"{record}{information}/RECORD,,\n".encode()
    new = directory / f".{wheel_path.name}"
    with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in files.items():
            wheel.writestr(zipfile.ZipInfo(name, _ZIP_TIME), content, zipfile.ZIP_DEFLATED)
    # Another 'cluster up' of this user may be copying it.
    if wheel_path.exists() and filecmp.cmp(new, wheel_path, shallow=False):
        new.unlink()
        return wheel_path
    for older in directory.glob(f"{_NAME.replace('-', '_')}-*.whl"):
        older.unlink()
    return new.rename(wheel_path)


def _download(directory: Path, wanted: WantedWheels, pins: dict[str, str], machine: str) -> None:
    """What periflow-ray and the user's packages need on one kind of machine."""
    platforms = [option for name in _PLATFORMS for option in ("--platform", f"{name}_{machine}")]
    target = ["--only-binary", ":all:", "--python-version", wanted.python, *platforms]
    markers = _markers_of(wanted.python, machine)
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        report, constraints = temporary / "report.json", temporary / "constraints.txt"
        if not wanted.has_torch:
            _write_stand_in(temporary, "torch", f"{pins['torch']}+image")
        # A stand-in of a version counts as that version.
        constraints.write_text("".join(f"{package}=={version}\n" for package, version in pins.items()))
        own = write_own_wheel(temporary)
        options = ["--dry-run", "--ignore-installed", "--target", name, "--report", str(report), "--find-links", name]
        needed = ["--constraint", str(constraints), f"{own}{_EXTRAS}", *wanted.packages]
        _pip(markers, "install", *options, *target, *needed)
        plan: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    packages = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in plan}
    left_out = {_NAME, *(() if wanted.has_torch else ("torch",))}
    found = [f"{package}=={version}" for package, version in sorted(packages.items()) if package not in left_out]
    _pip(markers, "download", "--no-deps", "--dest", str(directory), *target, *found)


def _find_pins() -> dict[str, str]:
    """The versions here of what periflow-ray names, without what marks them as built for this machine."""
    names = (re.match(r"[\w.-]+", requirement) for requirement in metadata.requires(_NAME) or ())
    return {found[0].lower(): version for found in names if found for version in _find_version(found[0])}


def _find_version(name: str) -> Iterator[str]:
    try:
        yield metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return


def _write_stand_in(directory: Path, name: str, version: str) -> None:
    """A wheel without content or needs, newer than the real one: pip takes it for what the image has."""
    information = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")


def _markers_of(python: str, machine: str) -> dict[str, str]:
    """What requirements can ask of a node; see PyPA's "Dependency specifiers"."""
    return {
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "python_version": python,
        "python_full_version": f"{python}.0",
    }


def _pip(markers: dict[str, str], *arguments: str) -> None:
    options = [json.dumps(markers), "--disable-pip-version-check", *arguments, "--quiet"]
    command = [sys.executable, "-c", _PIP_FOR_TARGET, *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        words = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")] or ["pip gave no reason"]
        raise ClusterError(
            "the wheels for the nodes cannot be collected:" + "".join(f"\n  {line}" for line in words[-_NUM_LINES:])
        )


def _claim(directory: Path) -> None:
    """Make sure that all that is in the folder was put there by this module."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in directory.iterdir())
        others = [] if _WANTED in names else names
        if not names:
            # From now on it is known for what it is.
            (directory / _WANTED).touch()
    except OSError as err:
        raise UsageError(f"wheels cannot be put into '{directory}': {err.strerror or err}") from err
    if others:
        raise UsageError(
            f"'{directory}' has other files ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}), and wheels "
            "are put into a folder that is theirs alone. Name one that is empty, or that is not there yet."
        )


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


def _hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
