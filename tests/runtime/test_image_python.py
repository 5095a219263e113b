"""The Python of a job's image, and packages above it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from node_run import NodeRun
from support.container_images import Podman
from support.tiny_wheels import make_wheel, offline

from periflow_ray.errors import HopelessError
from periflow_ray.jobs.environments import read_environments

pytestmark = pytest.mark.usefixtures("sandboxes")
SAYS = "python -c 'import tiny; print(tiny.__version__, tiny.__file__)'"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PERIFLOW_CACHE_DIR", str(tmp_path / "cache"))
    directory = tmp_path / "wheels"
    for name in ("tiny", "later"):
        make_wheel(directory, name, "1.0")
    return directory


def sees(wheels: Path) -> dict[str, object]:
    """Keys of docker by which a container finds the wheels."""
    return {"env_var": offline(wheels), "options": [f"--volume={wheels}:{wheels}:ro"]}


def test_packages_are_installed_above_those_of_the_image_once(
    podman: Podman, image: str, make_run: Callable[..., NodeRun], wheels: Path, tmp_path: Path
) -> None:
    # What is installed stays for the next attempt of the job, and the environment is left as it was.
    command = f"{SAYS}; pip install later; [ $PERIFLOW_ATTEMPT = 1 ] || python -c 'import later; print(later.__name__)'"
    run = make_run(command, image, python={"packages": ["tiny"]}, **sees(wheels))
    run.start()
    assert run.finish() is None, run.lines()
    (record,) = read_environments(run.root, 1)
    version = ".".join(map(str, sys.version_info[:3]))
    assert (record.version, list(record.installed)) == (version, ["later==1.0"])
    assert "tiny==1.0" in record.packages
    assert record.image is not None
    assert record.image.startswith(f"{image} (sha256:")
    run.start(attempt=2)
    assert run.finish() is None
    lines = run.lines()
    assert sum(line.startswith("1.0 ") for line in lines) == 2
    assert sum("installs 1 package" in line for line in lines) == 1
    assert lines[-1] == "later"


def test_an_image_without_python_is_told_only_where_one_is_needed(
    podman: Podman, image: str, make_run: Callable[..., NodeRun], wheels: Path
) -> None:
    options = ["--volume=/dev/null:/usr/bin/python:ro", "--volume=/dev/null:/usr/bin/python3:ro"]
    run = make_run("echo here", image, options=options)
    run.start()
    assert run.finish() is None
    assert run.lines() == ["here"]
    (record,) = read_environments(run.root, 1)
    assert (record.python, list(record.packages)) == ("", [])
    needs = make_run("echo here", image, python={"packages": ["tiny"]}, options=options)
    with pytest.raises(HopelessError, match=r"needs a Python, and the image .* has none"):
        needs.start()


def test_a_missing_package_is_told_with_pips_words(
    podman: Podman, image: str, make_run: Callable[..., NodeRun], wheels: Path
) -> None:
    run = make_run("true", image, python={"packages": ["no-such-package"]}, **sees(wheels))
    with pytest.raises(HopelessError, match="there is no such package or version for this Python"):
        run.start()


def test_the_version_has_to_be_the_images(
    podman: Podman, image: str, make_run: Callable[..., NodeRun], wheels: Path
) -> None:
    run = make_run("true", image, python={"packages": ["tiny"], "version": "3.8"}, **sees(wheels))
    with pytest.raises(HopelessError, match=r"version is 3\.8, and the image's Python is"):
        run.start()
