"""Data on standard output: rich tables and panels for people, JSON or YAML for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click
from rich.box import HEAVY_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.panel import Panel
from rich.segment import Segment
from rich.style import Style
from rich.table import Table

from periflow_ray.cli.plain_text import escape_block, escape_cell, escape_controls, escape_json
from periflow_ray.errors import DocumentError
from periflow_ray.finite_json import dump_json

Function = TypeVar("Function", bound=Callable[..., Any])

# Wide enough that nothing is folded when the output is a file or a pipe.
_PIPED_WIDTH = 10_000
_NUM_NAMED = 5


def output_option(function: Function) -> Function:
    """Adds ``-o table|json|yaml`` as ``output``."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json", "yaml"]),
        default="table",
        show_default=True,
        help="A table for people, JSON or YAML for programs.",
    )(function)


def write_output(output: str, document: Any, draw: Callable[[Console], None]) -> None:
    """Write ``document`` as JSON or YAML, or let ``draw`` show it to a person.

    Numbers that JSON does not have are text, as in stored documents: "NaN", "Infinity", "-Infinity".
    """
    if output == "json":
        click.echo(escape_json(dump_json(_plain(document), indent=2, ensure_ascii=False)))
    elif output == "yaml":
        import yaml

        text = yaml.safe_dump(_plain(document), sort_keys=False, allow_unicode=True)
        if escape_controls(text) != text:
            # YAML takes some characters for harmless that are not; in ASCII all of them are spelled out.
            text = yaml.safe_dump(_plain(document), sort_keys=False)
        click.echo(text, nl=False)
    else:
        draw(data_console())


def tell_left_out(err: DocumentError) -> None:
    """Say which entry of a list is not shown because its document cannot be read."""
    click.echo(escape_controls(f"Left out: {err}"), err=True)


def tell_skipped(path: str, reason: str) -> None:
    """Say what of a directory is not packed or stored; see ``walk_tree``."""
    click.echo(escape_controls(f"Left out: '{path}' {reason}."), err=True)


def tell_ignored(paths: Sequence[str], git_trouble: str | None) -> None:
    """Say what of a workspace rules leave out: the first of it, and how much more there is; see ``Workspace``."""
    if not paths:
        return
    named = ", ".join(escape_cell(path) for path in paths[:_NUM_NAMED])
    more = f" and {len(paths) - _NUM_NAMED} more" if len(paths) > _NUM_NAMED else ""
    click.echo(f"Left out by .gitignore and .pfignore: {named}{more}.", err=True)
    if git_trouble is not None:
        click.echo(
            f"Files that git tracks may be among them, because git does not answer: {escape_cell(git_trouble)}",
            err=True,
        )


def data_console() -> Console:
    """A console on standard output; it shows text as it is and never cuts it off when piped."""
    console = _PlainConsole(markup=False, highlight=False, emoji=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    return console


def talk_console() -> Console:
    """A console on standard error, for what is not the command's result."""
    return _PlainConsole(stderr=True, markup=False, highlight=False, emoji=False)


class _PlainConsole(Console):
    """A console whose own colours are the only control characters that reach the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            is_ours = segment.control is not None or segment.text.isprintable()
            yield segment if is_ours else Segment(escape_controls(segment.text), segment.style)


def draw_table(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], *, text_column: str | None = None
) -> None:
    """Draw a table with bold headings; long cells fold, and very long ones lose their middle.

    Args:
        text_column: the column whose cells may have several lines.
    """
    texts = [column == text_column for column in columns]
    columns = [escape_cell(column) for column in columns]
    rows = [
        [escape_block(cell) if is_text else escape_cell(cell) for is_text, cell in zip(texts, row, strict=True)]
        for row in rows
    ]
    widths = [2 + max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    if 1 + sum(1 + width for width in widths) <= console.width and not any(
        "\n" in cell for row in rows for cell in row
    ):
        console.print(_UnfoldedTable(columns, rows, widths))
        return
    table = Table(header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


@dataclass(frozen=True)
class _UnfoldedTable:
    """What rich draws where nothing folds, in a tenth of the time, which `vm list` with its 1,500 rows needs."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    widths: Sequence[int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        box = HEAVY_HEAD.substitute(options)
        yield Segment(box.get_top(self.widths) + "\n")
        yield Segment(box.head_left)
        for index, cell in enumerate(self._pad(self.columns)):
            if index:
                yield Segment(box.head_vertical)
            yield Segment(cell, Style(bold=True))
        yield Segment(f"{box.head_right}\n{box.get_row(self.widths, 'head')}\n")
        for row in self.rows:
            yield Segment(f"{box.mid_left}{box.mid_vertical.join(self._pad(row))}{box.mid_right}\n")
        yield Segment(box.get_bottom(self.widths) + "\n")

    def _pad(self, cells: Sequence[str]) -> list[str]:
        return [f" {cell}{' ' * (width - 1 - cell_len(cell))}" for cell, width in zip(cells, self.widths, strict=True)]


def build_fields(fields: Mapping[str, str]) -> Table:
    """Names and values below each other, the content of an overview panel."""
    table = Table(box=None, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(name, escape_block(value))
    return table


def draw_panels(console: Console, panels: Mapping[str, RenderableType]) -> None:
    """Panels below each other, all of one width."""
    built = [Panel(content, title=title, expand=console.is_terminal) for title, content in panels.items()]
    if not console.is_terminal:
        width = max(console.measure(panel).maximum for panel in built)
        for panel in built:
            panel.width = width
    for panel in built:
        console.print(panel)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
