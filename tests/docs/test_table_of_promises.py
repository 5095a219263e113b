"""The tests that ``tests/README.md`` names are there, and run when it says so."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from support.lanes import starts_ray

TESTS_DIR = Path(__file__).parents[1]
README = (TESTS_DIR / "README.md").read_text("utf-8")
# Bold, folder, file, and a part of the name of one of its tests.
REFERENCE = re.compile(r"(\*\*)?`([a-z_]+)/([a-z_]+)(?:::([a-z0-9_]+))?`")


def find_tests(path: Path) -> dict[str, bool]:
    """Names of a file's tests, and whether a test runs with ``--all`` only, whatever its parameters."""
    tree = ast.parse(path.read_text("utf-8"))
    marks = [node.value for node in tree.body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)]
    is_long_file = any("mark.long" in ast.unparse(mark) for mark in marks)
    return {
        node.name: is_long_file or any(ast.unparse(mark) == "pytest.mark.long" for mark in node.decorator_list)
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
    }


def test_every_test_that_the_table_names_exists_and_runs_as_it_says():
    problems = []
    references = REFERENCE.findall(README)
    for is_bold, folder, file, part in references:
        path = TESTS_DIR / folder / f"test_{file}.py"
        if not path.exists():
            if folder not in ("support", "scripts"):
                problems.append(f"{folder}/{file}: no such file")
            continue
        found = {name: is_long for name, is_long in find_tests(path).items() if part in name}
        if not found:
            problems.append(f"{folder}/{file}::{part}: no such test")
        elif is_bold and all(found.values()):
            problems.append(f"{folder}/{file}::{part}: bold, but marked long")
    assert len(references) > 100
    assert problems == []


def test_every_file_with_jobs_on_ray_is_in_the_table():
    named = {f"{folder}/test_{file}.py" for _, folder, file, _ in REFERENCE.findall(README)}
    on_ray = {str(path.relative_to(TESTS_DIR)) for path in TESTS_DIR.rglob("test_*.py") if starts_ray(path)}
    assert sorted(on_ray - named) == []
