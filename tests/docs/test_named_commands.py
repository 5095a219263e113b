"""What the program tells people to type can be typed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import click
from support.commands import find_leaf_commands
from support.documents import ROOT_DIR

from periflow_ray.cli.main import cli


def find_messages() -> Iterator[tuple[str, str]]:
    """Texts of the program that are no docstrings, with their module; a value within one is a 1."""
    for path in (ROOT_DIR / "periflow_ray").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        inner |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                yield path.name, "".join(str(getattr(part, "value", 1)) for part in map(_as_constant, node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
                yield path.name, node.value


def _as_constant(node: ast.expr) -> ast.Constant:
    return node if isinstance(node, ast.Constant) else ast.Constant(1)


def test_a_command_that_a_message_names_exists_and_has_an_argument_if_it_needs_one() -> None:
    commands = dict(find_leaf_commands(cli))
    groups = {" ".join(name.split()[:number]) for name in commands for number in (1, 2)} - commands.keys()
    num_named, problems = 0, []
    for module, text in find_messages():
        # After the name of the program a sentence may go on; a group is followed by a command.
        for rest in re.findall(r"periflow-ray ([^\n]*)", text):
            name, _, following = rest.partition(" ")
            while name in groups and following:
                word, _, following = following.partition(" ")
                name = f"{name} {word}".rstrip(".,;:)'\"")
            if name.split()[0] not in groups:
                continue
            num_named += 1
            if name not in commands:
                problems.append(f"{module}: there is no command {name}")
            elif not following and any(
                isinstance(param, click.Argument) and param.required for param in commands[name].params
            ):
                problems.append(f"{module}: {name} needs an argument")
    assert num_named > 50
    assert problems == []
