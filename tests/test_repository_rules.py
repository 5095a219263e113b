"""Rules for every file of the repository."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY_DIR = Path(__file__).resolve().parents[1]
# Past it there is often a second idea in the file; where there is none, the module says so.
MAX_MODULE_LINES = 300
REASON = "Long because "
TEXT_SUFFIXES = {".cfg", ".ini", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml", ""}
# Written in pieces, so that this file keeps its own rules.
UNFINISHED = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" * 3 + r"\b")))
MACHINE_PATHS = re.compile(
    r"(?<![\w.$}])/(?:" + "|".join(("ho" + r"me/\w", "ro" + r"ot/\w", "wo" + "rk/", "Us" + "ers/")) + ")"
)


def find_files() -> list[Path]:
    """Every text file that is, or may become, part of the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY_DIR,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    paths = [REPOSITORY_DIR / name for name in listed.split("\0") if name]
    return [path for path in paths if path.suffix in TEXT_SUFFIXES and path.is_file()]


FILES = find_files()


def find_lines(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path.relative_to(REPOSITORY_DIR)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]


def test_nothing_is_left_for_later():
    assert UNFINISHED.search("# TO" + "DO: later")
    assert find_lines(UNFINISHED) == []


def test_no_path_belongs_to_one_machine():
    assert MACHINE_PATHS.search("cd /ho" + "me/ada")
    assert find_lines(MACHINE_PATHS) == []


def lacks_reason(source: str) -> bool:
    """Whether a module is long and does not say why, in a line of its docstring."""
    if len(source.splitlines()) <= MAX_MODULE_LINES:
        return False
    lines = (ast.get_docstring(ast.parse(source)) or "").splitlines()
    return not any(line.startswith(REASON) and len(line) > len(REASON) for line in lines)


def test_modules_are_short_or_say_why_not():
    assert not lacks_reason("pass\n" * MAX_MODULE_LINES)
    assert lacks_reason("pass\n" * (MAX_MODULE_LINES + 1))
    assert lacks_reason(f"# {REASON}it may.\n" + "pass\n" * MAX_MODULE_LINES)
    assert not lacks_reason(f'"""One idea.\n\n{REASON}it is one idea.\n"""\n' + "pass\n" * MAX_MODULE_LINES)
    assert [
        str(path.relative_to(REPOSITORY_DIR))
        for path in FILES
        if path.suffix == ".py" and lacks_reason(path.read_text("utf-8"))
    ] == []


def test_test_modules_have_different_names():
    names = [path.name for path in FILES if path.name.startswith("test_") and path.suffix == ".py"]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    "directory",
    sorted(path for path in (REPOSITORY_DIR / "examples").iterdir() if path.is_dir() and path.name != "__pycache__"),
    ids=lambda path: path.name,
)
def test_every_example_explains_itself_in_both_languages(directory: Path):
    assert (directory / "README.md").is_file()
    assert (directory / "README.ko.md").is_file()


# Distributions that are not called as what they give.
DISTRIBUTION_OF = {"yaml": "PyYAML", "azure": "azure-identity", "grpc": "grpcio"}
# Parts of declared distributions, and what is looked for in the user's environment and not required.
# Pandas is Ray Tune's own way to give results.
UNDECLARED = {"pydantic_core", "lightning", "periflow_launcher", "periflow_exit", "pandas"}


def test_what_the_package_imports_is_declared():
    project = (REPOSITORY_DIR / "pyproject.toml").read_text("utf-8")
    package_dir = REPOSITORY_DIR / "periflow_ray"
    imported = {
        name.split(".")[0]
        for path in package_dir.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    foreign = imported - set(sys.stdlib_module_names) - {"periflow_ray", "__future__"} - UNDECLARED
    names = {DISTRIBUTION_OF.get(name, name.replace("_", "-")) for name in foreign}
    assert len(names) > 10
    assert [name for name in sorted(names) if not re.search(rf'"{name}[\["<>=]', project)] == []


def test_everything_names_the_same_lowest_python():
    minor = int(re.search(r'requires-python = ">=3\.(\d+)"', read("pyproject.toml"))[1])
    for name, text in (
        ("pyproject.toml", f'target-version = "py3{minor}"'),
        ("pyproject.toml", f'python_version = "3.{minor}"'),
        ("pyproject.toml", f'"Programming Language :: Python :: 3.{minor}"'),
        ("README.md", f"Python 3.{minor} or newer"),
        ("README.ko.md", f"Python 3.{minor} 이상"),
        ("cluster_configs/README.md", f"Python 3.{minor} or newer"),
        ("scripts/setup", f"sys.version_info < (3, {minor})"),
        ("scripts/setup", f"Python 3.{minor} or newer"),
        ("periflow_ray/cluster/node/node.sh", f"sys.version_info < (3, {minor})"),
        ("periflow_ray/cluster/node/node.sh", f"Python 3.{minor} or newer"),
        ("periflow_ray/cli/cluster_wheels.py", f"_LEAST_MINOR = {minor}\n"),
        ("tests/sdk/test_other_pythons.py", f"sys.version_info < (3, {minor})"),
    ):
        assert text in read(name), name


def test_no_regular_expression_has_an_atomic_group():
    """Python 3.10 has none, which neither mypy nor ruff sees."""
    sources = (REPOSITORY_DIR / "periflow_ray").rglob("*.py")
    assert [str(path) for path in sources if "(?>" in path.read_text("utf-8")] == []


def read(name: str) -> str:
    return (REPOSITORY_DIR / name).read_text("utf-8")
