"""What is said of a requirements file before a job is submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from periflow_ray.errors import PlanError
from periflow_ray.spec.python import PythonSpec
from periflow_ray.submit.requirements import check_requirements
from periflow_ray.submit.workspace import scan_workspace

SPEC = PythonSpec(requirements="requirements.txt")


def write(tmp_path: Path, **files: str) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    for name, text in files.items():
        (directory / name.replace("_txt", ".txt")).write_text(text)
    return directory


def test_what_it_asks_for_is_known(tmp_path: Path) -> None:
    directory = write(tmp_path, requirements_txt="-r more.txt\n", more_txt="tqdm\n")
    assert check_requirements(SPEC, scan_workspace(directory)).names == ["tqdm"]
    assert check_requirements(PythonSpec(packages=("a",)), None).names == []


def test_a_job_without_a_workspace_has_no_such_file() -> None:
    with pytest.raises(PlanError, match="Give the directory that it is in: -d DIR"):
        check_requirements(SPEC, None)


def test_a_file_that_is_not_there_is_told_with_the_nearest_one(tmp_path: Path) -> None:
    directory = write(tmp_path, requirement_txt="tqdm\n")
    with pytest.raises(PlanError, match=r"is not in the workspace '.*'\. Did you mean 'requirement\.txt'\?"):
        check_requirements(SPEC, scan_workspace(directory))


def test_a_file_that_is_ignored_is_told(tmp_path: Path) -> None:
    directory = write(tmp_path, requirements_txt="tqdm\n")
    (directory / ".pfignore").write_text("*.txt\n")
    with pytest.raises(PlanError, match=r"is left out of the workspace, by \.gitignore or \.pfignore"):
        check_requirements(SPEC, scan_workspace(directory))


def test_all_lines_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    directory = write(tmp_path, requirements_txt="-r gone.txt\na=>1\ngone.whl\n")
    with pytest.raises(PlanError) as caught:
        check_requirements(SPEC, scan_workspace(directory))
    lines = str(caught.value).splitlines()
    assert lines[0] == "requirements that cannot be used:"
    assert lines[1].startswith("  requirements.txt:1: 'gone.txt' cannot be read: it is not in the workspace")
    assert lines[2].startswith("  requirements.txt:2: 'a=>1' is no requirement")
    assert lines[3] == "  'gone.whl' is not in the workspace"
