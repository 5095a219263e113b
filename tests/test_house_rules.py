"""Rules of the house that no linter knows, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE_DIR = Path(__file__).resolve().parents[1] / "periflow_ray"
MODULES = sorted(PACKAGE_DIR.rglob("*.py"))


def find_starting_constructors(tree: ast.Module) -> list[int]:
    """Lines in constructors that start a thread, or a loop that has one."""
    return [
        node.lineno
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name in ("__init__", "__post_init__")
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "start"
    ]


def test_no_thread_starts_in_a_constructor():
    found = {
        str(path.relative_to(PACKAGE_DIR))
        for path in MODULES
        if find_starting_constructors(ast.parse(path.read_text("utf-8")))
    }
    assert found == set()


@pytest.mark.parametrize(
    "body",
    ["threading.Thread(target=f).start()", "self._thread.start()", "self._loop = Loop()\n        self._loop.start()"],
)
def test_the_rule_sees_what_it_is_there_for(body: str):
    source = f"class A:\n    def __init__(self):\n        {body}\n    def start(self):\n        self._thread.start()\n"
    assert len(find_starting_constructors(ast.parse(source))) == 1
