"""A Click group that imports a command's module when the command is used, so that ``--help`` starts at once."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from periflow_ray.names import suggest_names

LazyCommands = Mapping[str, tuple[str, str]]
"""Command name -> (``module:object``, one line for the group's help)."""

HiddenAliases = Mapping[str, str]
"""Former name of a command, which still works but is not shown -> its name."""


class LazyGroup(click.Group):
    """A group whose commands are named by ``lazy_commands`` and imported one at a time."""

    def __init__(
        self,
        *args: Any,
        lazy_commands: LazyCommands | None = None,
        hidden_aliases: HiddenAliases | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._lazy_commands = dict(lazy_commands or {})
        self._hidden_aliases = dict(hidden_aliases or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy_commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy_commands:
            return None
        module_name, _, object_name = self._lazy_commands[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module_name), object_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = self._hidden_aliases.get(args[0], args[0])
        if name not in self._lazy_commands and not name.startswith("-") and not ctx.resilient_parsing:
            suggestion = suggest_names(name, self._lazy_commands, cutoff=0.5)
            ctx.fail(f"no such command '{name}'.{suggestion} Commands: {', '.join(self._lazy_commands)}")
        return super().resolve_command(ctx, [name, *args[1:]])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Click would import every command here to ask it for its short help.
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self._lazy_commands.items()])
