"""The commands of the program, as Click knows them."""

from __future__ import annotations

from collections.abc import Iterator

import click


def find_leaf_commands(command: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command that is not a group, with its name."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    ctx = click.Context(command)
    for name in command.list_commands(ctx):
        inner = command.get_command(ctx, name)
        assert inner is not None
        yield from find_leaf_commands(inner, f"{path} {name}".strip())
