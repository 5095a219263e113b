from __future__ import annotations

import io
import math

import pytest
from rich.console import Console
from rich.default_styles import DEFAULT_STYLES
from rich.table import Table

from periflow_ray.cli.file_tree import build_file_tree
from periflow_ray.cli.format import format_duration, format_time, format_value, iso_time
from periflow_ray.cli.output import is_drawable, talk_console
from periflow_ray.cli.tables import _STATUS_STYLES, draw_table
from periflow_ray.store.size_text import format_size


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [
        (None, "-"),
        (-1, "0s"),
        (4.4, "4s"),
        (59.6, "1m 00s"),
        (123, "2m 03s"),
        (3723, "1h 02m 03s"),
        (3 * 86400 + 3720, "3d 01h 02m"),
    ],
)
def test_durations(duration_s, text):
    assert format_duration(duration_s) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (999_999, "1.0 MB"),
        (31_000_000, "31.0 MB"),
        (2e15, "2.0 PB"),
    ],
)
def test_sizes(num_bytes, text):
    assert format_size(num_bytes) == text


def test_times_for_people_and_for_programs():
    assert (format_time(1_767_225_600.5), format_time(None)) == ("2026-01-01 00:00:00", "-")
    assert (iso_time(1_767_225_600.5), iso_time(None)) == ("2026-01-01T00:00:00.500+00:00", None)


def test_values():
    values = [format_value(value) for value in (1 / 3, 12, math.nan, "warm-up", True, None)]
    assert values == ["0.333333", "12", "nan", "warm-up", "True", "-"]


def draw(columns, rows, width, **options) -> str:
    out = io.StringIO()
    draw_table(Console(file=out, width=width, markup=False), columns, rows, **options)
    return out.getvalue()


def test_where_a_table_does_not_fit_columns_go_first_and_nothing_folds():
    columns, row = ["Name", "VM", "Region"], ("a", "azure-16gb-v100", "eastus")
    assert (
        draw(columns, [row], 26, dropped_first=["Region"])
        == """\
┏━━━━━━┳━━━━━━━━━━━━━━━━━┓
┃ Name ┃ VM              ┃
┡━━━━━━╇━━━━━━━━━━━━━━━━━┩
│ a    │ azure-16gb-v100 │
└──────┴─────────────────┘
26 columns have no room \nfor: Region. With them: -o\njson
"""
    )
    assert draw(columns, [row, row], 25) == "\n".join(["Name    a\nVM      azure-16gb-v100\nRegion  eastus\n"] * 2)


def test_where_a_frame_has_no_room_the_columns_stand_without_it():
    rows = [("azure-16gb-v100", "1.25"), ("local", "-")]
    assert (
        draw(["VM", "USD/hour"], rows, 25)
        == """\
VM               USD/hour
azure-16gb-v100  1.25
local            -
"""
    )
    assert draw(["VM", "USD/hour"], rows[:1], 24) == "VM        azure-16gb-v100\nUSD/hour  1.25\n"


def test_colours_can_be_read_on_a_light_and_on_a_dark_ground():
    console = talk_console()
    names = [name for name in DEFAULT_STYLES if name.startswith("progress.")]
    # Yellow and cyan are too light for a white ground, blue is too dark for a black one.
    assert {"yellow", "cyan"} <= {str(DEFAULT_STYLES[name]) for name in names}
    assert {str(console.get_style(name)) for name in names} <= {"none", "green"}
    assert {style.split()[-1] for style in _STATUS_STYLES.values()} == {"green", "bold", "red"}


def test_a_terminal_that_cannot_draw_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert is_drawable(Console(force_terminal=True))
    monkeypatch.setenv("TERM", "dumb")
    assert not is_drawable(Console(force_terminal=True))


def test_sentences_fold_between_words_beside_names_that_do_not():
    assert (
        draw(["Name", "Event"], [("azure-16gb", "one two three four five six seven")], 41, text_column="Event")
        == """\
┏━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━┓
┃ Name       ┃ Event                    ┃
┡━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━┩
│ azure-16gb │ one two three four five  │
│            │ six seven                │
└────────────┴──────────────────────────┘
"""
    )


def test_cells_may_have_several_lines_and_wide_characters():
    assert (
        draw(["Name", "Text"], [("실험", "one\ntwo"), ("b", "[red]x")], 80, text_column="Text")
        == """\
┏━━━━━━┳━━━━━━━━┓
┃ Name ┃ Text   ┃
┡━━━━━━╇━━━━━━━━┩
│ 실험 │ one    │
│      │ two    │
│ b    │ [red]x │
└──────┴────────┘
"""
    )


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("rows", [[], [("a", "")], [("실험 1", "[red]x"), ("b", "모델"), ("", "long " * 12)]])
def test_a_table_that_fits_is_drawn_as_rich_draws_it(rows, is_terminal):
    columns = ["Name", "설명"]
    expected = Table(header_style="bold")
    for column in columns:
        expected.add_column(column)
    for row in rows:
        expected.add_row(*row)
    drawn = []
    for draw_it in (lambda console: console.print(expected), lambda console: draw_table(console, columns, rows)):
        out = io.StringIO()
        draw_it(Console(file=out, width=200, markup=False, force_terminal=is_terminal, color_system="truecolor"))
        # Where one piece of bold text begins as another one ends, nothing changes.
        drawn.append(out.getvalue().replace("\x1b[0m\x1b[1m", ""))
    assert drawn[0] == drawn[1]


def test_a_folder_with_very_many_files_is_summed_up():
    out = io.StringIO()
    sizes = {f"images/{index:04}.png": 1000 for index in range(1000)}
    Console(file=out, width=60, emoji=False).print(build_file_tree("/", sizes))
    lines = out.getvalue().splitlines()
    assert len(lines) == 2 + 50 + 1
    assert lines[-1].rstrip() == "    └── … 950 more files (950.0 kB)"
