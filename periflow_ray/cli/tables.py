"""Tables and panels in which nothing that people copy is ever folded, on any terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import HEAVY_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.panel import Panel
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from periflow_ray.cli.output import PIPED_WIDTH
from periflow_ray.cli.plain_text import escape_block, escape_cell

# Sentences that are narrower than this are hard to read.
_MIN_TEXT_WIDTH = 24
# Blanks between columns that have no lines between them.
_GAP = 2
_STATUS_STYLES = {
    "success": "green",
    "committed": "green",
    "running": "bold",
    "failed": "bold red",
    "damaged": "bold red",
}


def draw_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text_column: str | None = None,
    dropped_first: Sequence[str] = (),
) -> None:
    """Draw a table with bold headings, in which no name, number or address is ever folded: people copy them.

    Where the terminal is too narrow, columns are left out, and a line says so; where that is not enough, so is the
    frame, or each row becomes a list of lines. Very long cells lose their middle.

    Args:
        text_column: the column of sentences, which fold between words and may have several lines.
        dropped_first: columns that may be left out, in this order.
    """
    texts = [column == text_column for column in columns]
    columns = [escape_cell(column) for column in columns]
    rows = [
        [escape_block(cell) if is_text else escape_cell(cell) for is_text, cell in zip(texts, row, strict=True)]
        for row in rows
    ]
    widths = [max(map(_width, column)) for column in zip(columns, *rows, strict=True)]
    least = [
        _least_text_width(column) if is_text else width
        for is_text, width, column in zip(texts, widths, zip(columns, *rows, strict=True), strict=True)
    ]
    shown = _fit_columns(columns, least, dropped_first, console.width)
    left_out = [column for index, column in enumerate(columns) if index not in shown]
    columns = [columns[index] for index in shown]
    texts = [texts[index] for index in shown]
    widths = [widths[index] for index in shown]
    rows = [[row[index] for index in shown] for row in rows]
    if _table_width([least[index] for index in shown]) > console.width:
        if sum(widths) + _GAP * (len(widths) - 1) <= console.width and not any(
            "\n" in cell for row in rows for cell in row
        ):
            _draw_unframed(console, columns, rows, widths)
        else:
            _draw_records(console, columns, rows)
    elif _table_width(widths) <= console.width and not any("\n" in cell for row in rows for cell in row):
        console.print(_UnfoldedTable(columns, rows, [2 + width for width in widths]))
    else:
        table = Table(header_style="bold")
        for column, is_text in zip(columns, texts, strict=True):
            table.add_column(column, no_wrap=not is_text, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell, _style_of(column, cell)) for column, cell in zip(columns, row, strict=True)))
        console.print(table)
    if left_out:
        console.print(f"{console.width} columns have no room for: {', '.join(left_out)}. With them: -o json")


def _fit_columns(columns: Sequence[str], widths: Sequence[int], dropped_first: Sequence[str], limit: int) -> list[int]:
    """The places of the columns for which a table of this width has room, or of those that are never left out."""
    shown = list(range(len(columns)))
    for column in dropped_first:
        if _table_width([widths[index] for index in shown]) <= limit:
            break
        shown.remove(columns.index(column))
    return shown


def _table_width(widths: Sequence[int]) -> int:
    return 1 + sum(3 + width for width in widths)


def _width(cell: str) -> int:
    return max(map(cell_len, cell.split("\n")))


def _least_text_width(cells: Sequence[str]) -> int:
    """How narrow sentences may be drawn: words stay whole."""
    longest_word = max((cell_len(word) for cell in cells for word in cell.split()), default=0)
    return max(longest_word, min(_MIN_TEXT_WIDTH, max(map(_width, cells))))


def _draw_unframed(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]
) -> None:
    for number, row in enumerate([columns, *rows]):
        line = Text()
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            line.append(cell, "bold" if number == 0 else _style_of(columns[index], cell))
            if index < len(row) - 1:
                line.append(" " * (width - cell_len(cell) + _GAP))
        console.print(line, soft_wrap=True)


def _draw_records(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Each row as lines of a heading and a value, which the terminal may wrap and which are copied whole."""
    width = max(map(cell_len, columns))
    for number, row in enumerate(rows):
        if number:
            console.print()
        for column, cell in zip(columns, row, strict=True):
            heading = f"{column}{' ' * (width - cell_len(column))}  "
            console.print(Text.assemble((heading, "bold"), (cell, _style_of(column, cell))), soft_wrap=True)


def _style_of(column: str, cell: str) -> str:
    """How a cell is written: states in colours that can be read on a light and on a dark ground."""
    return _STATUS_STYLES.get(cell.partition(":")[0], "") if column == "Status" else ""


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
            line = ""
            for index, (cell, padded) in enumerate(zip(row, self._pad(row), strict=True)):
                line += box.mid_vertical if index else box.mid_left
                style = _style_of(self.columns[index], cell)
                if style:
                    yield Segment(line)
                    yield Segment(padded, Style.parse(style))
                    line = ""
                else:
                    line += padded
            yield Segment(f"{line}{box.mid_right}\n")
        yield Segment(box.get_bottom(self.widths) + "\n")

    def _pad(self, cells: Sequence[str]) -> list[str]:
        return [f" {cell}{' ' * (width - 1 - cell_len(cell))}" for cell, width in zip(cells, self.widths, strict=True)]


def build_fields(fields: Mapping[str, str]) -> Table:
    """Names and values below each other, the content of an overview panel; a field's name may choose its colour."""
    table = Table(box=None, show_header=False)
    # Rich counts only the longest word of a column as what it needs at least.
    table.add_column(style="bold", no_wrap=True, min_width=max(map(cell_len, fields), default=0))
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(name, Text(escape_block(value), _style_of(name, value)))
    return table


def draw_fields(console: Console, fields: Mapping[str, str]) -> None:
    """Names and values below each other, without a frame; words are never folded."""
    _draw_unfolded(console, build_fields(fields))


def draw_panels(console: Console, panels: Mapping[str, RenderableType]) -> None:
    """Panels below each other, all of one width; headings instead where a word does not fit into a panel."""
    widest = max(_measure(console, content).minimum for content in panels.values())
    if console.is_terminal and widest + 4 > console.width:
        for title, content in panels.items():
            console.print(Text(title, "bold underline"))
            _draw_unfolded(console, content)
            console.print()
        return
    built = [Panel(content, title=title, expand=console.is_terminal) for title, content in panels.items()]
    if not console.is_terminal:
        width = max(console.measure(panel).maximum for panel in built)
        for panel in built:
            panel.width = width
    for panel in built:
        console.print(panel)


def _draw_unfolded(console: Console, content: RenderableType) -> None:
    """Draw with no word folded: what is too long is left to the terminal, which copies it whole."""
    sizes = _measure(console, content)
    options = console.options.update(width=max(min(console.width, sizes.maximum), sizes.minimum))
    for line in console.render_lines(content, options, pad=False):
        while line and not line[-1].text.strip():
            line.pop()
        if line:
            line[-1] = Segment(line[-1].text.rstrip(), line[-1].style)
        console.print(_Line(line), soft_wrap=True)


def _measure(console: Console, content: RenderableType) -> Measurement:
    return Measurement.get(console, console.options.update(width=PIPED_WIDTH), content)


@dataclass(frozen=True)
class _Line:
    segments: Sequence[Segment]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        yield from self.segments
        yield Segment.line()
