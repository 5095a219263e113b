"""Writes docs/commands.md to standard output: every command of the program, as Click knows it."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator

import click

from periflow_ray.cli.main import cli

PROGRAM = "periflow-ray"
INTRODUCTION = """\
# Commands

<!-- Made by scripts/generate-command-docs from the commands themselves; change those, not this file. -->

`periflow-ray` and `pf` are the same program. Data goes to standard output, messages to standard error. Every list and
view takes `-o json` or `-o yaml`, and every command takes `-h`, which prints its part of this page.

| Exit code | Meaning |
|---|---|
| 0 | it worked; of `submit` and `job log --follow`: [the job succeeded](inside-a-job.md#when-a-command-has-succeeded) |
| 1 | it failed: the job, the cluster, the storage root, or there is no such thing |
| 2 | the command line, the template or the workspace is wrong; nothing was started |
| 130 | you stopped following with Ctrl-C and the job keeps running |
"""


def build_document() -> str:
    """The document, with a table of all commands first and a section for each after it."""
    index = ["| Command | Use |", "|---|---|"]
    sections: list[str] = []
    # A command that has two names is described under the first.
    described: dict[int, str] = {}
    for words, command in _walk(cli):
        first = described.setdefault(id(command), words)
        use = _cell(command.get_short_help_str(limit=200)) if first == words else f"The same as {_link(first)}."
        index.append(f"| {_link(words)} | {use} |")
        text = _describe(words, command) if first == words else f"The same as {_link(first)}.\n"
        sections.append(f"{'#' * (2 + words.count(' '))} {words}\n\n{text}")
    return "\n".join([INTRODUCTION, "\n".join(index) + "\n", *sections])


def _walk(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command below a group, with its words; a group comes before its commands.

    A group that was seen under another name is not entered again.
    """
    seen: set[int] = set()
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        words = f"{path} {name}".strip()
        yield words, command
        if isinstance(command, click.Group) and id(command) not in seen:
            yield from _walk(command, words)
        seen.add(id(command))


def _describe(words: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"{PROGRAM} {words}")
    text, examples = _split_help(command)
    usage = " ".join([PROGRAM, words, *command.collect_usage_pieces(context)])
    parts = [text, f"```text\n{usage}\n```", f"```sh\n{examples}\n```"]
    # Not --help, which every command has.
    records = [param.get_help_record(context) for param in command.params]
    rows = [f"| `{_cell(names)}` | {_cell(meaning)} |" for names, meaning in filter(None, records)]
    if rows:
        parts.append("\n".join(["| Option | Meaning |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _split_help(command: click.Command) -> tuple[str, str]:
    """A help text's paragraphs, and its example lines."""
    text, _, rest = inspect.cleandoc(command.help or "").partition("\n\n\b\n")
    examples = inspect.cleandoc(re.sub(r"^Examples?:\n", "", rest)).strip()
    # Written with < and >, which Markdown would take for tags.
    return re.sub(r"<[^>]+>(?:/<[^>]+>)*", r"`\g<0>`", text.strip()), examples


def _link(words: str) -> str:
    return f"[`{words}`](#{words.replace(' ', '-')})"


def _cell(text: str) -> str:
    """Text for a table: on one line, without a bar that would end the cell."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(build_document())
