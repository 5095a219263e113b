"""Nothing that a job, a script or a file name says drives the reader's terminal, or fills it."""

from __future__ import annotations

import json

import pytest
from support.sample_jobs import build_record

from periflow_ray.bounded_text import shorten
from periflow_ray.cli.output import data_console
from periflow_ray.cli.plain_text import escape_cell, escape_controls, escape_json, escape_line
from periflow_ray.cli.tables import draw_table
from periflow_ray.jobs import JobProgress, JobState, write_progress, write_record, write_state
from periflow_ray.jobs.events import EventWriter
from periflow_ray.jobs.logs import LogWriter
from periflow_ray.jobs.metrics import Metric, MetricsWriter

# The title of the window, a report to standard input, the cleared screen, a rewritten line, a hidden direction, C1.
HOSTILE = "\x1b]0;owned\x07 \x1b[6n \x1b[2J a\rb \u202egpj.exe \x9b2J \x1bc \x7f \u2028"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 학습 é\ttab", "plain 학습 é\ttab"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m"),
        ("\x1b[31mred\x1b[m", "\x1b[31mred\x1b[m"),
        # A colour ends with its line.
        ("\x1b[8mhidden", "\x1b[8mhidden\x1b[0m"),
        ("\x1b[31mred\x1b[2J", "\x1b[31mred" + r"\x1b[2J" + "\x1b[0m"),
        ("50 %\r100 %", r"50 %\x0d100 %"),
        ("a\u202eb\u2066\x9b", r"a\u202eb\u2066\x9b"),
    ],
)
def test_of_what_a_line_says_to_the_terminal_only_colours_are_left(text, shown):
    assert escape_line(text) == shown


def test_a_cell_is_one_line_of_bounded_length():
    assert escape_cell("two\nlines\x1b[31m") == r"two\nlines\x1b[31m"
    assert len(escape_cell("x" * 1_000_000)) < 600
    assert shorten("abcdefghij" * 10, 10) == "abcde[... 90 characters ...]fghij"


def test_json_keeps_its_meaning():
    document = {"name": HOSTILE}
    text = escape_json(json.dumps(document, ensure_ascii=False))
    assert text.isprintable()
    assert json.loads(text) == document


@pytest.mark.parametrize(
    "command",
    [
        ["job", "list"],
        ["job", "view", "1"],
        ["job", "events", "1"],
        ["job", "log", "1"],
        ["job", "log", "1", "-f"],
        ["job", "metrics", "show", "1"],
        ["job", "metrics", "list", "1"],
        ["job", "list", "-o", "json"],
        ["job", "log", "1", "-o", "json"],
        ["job", "events", "1", "-o", "json"],
        ["job", "events", "1", "-o", "yaml"],
        ["job", "log", "1", "-o", "yaml"],
        ["job", "metrics", "show", "1", "-o", "yaml"],
    ],
)
def test_no_command_hands_on_what_drives_a_terminal(run_cli, root, command):
    write_record(root, build_record(1, name=HOSTILE, num_nodes=1, num_devices=1))
    write_state(root, 1, JobState("failed", message=f"node 0: {HOSTILE}\nLast lines:\n{HOSTILE}"))
    write_progress(root, 1, JobProgress(step=1, metrics={HOSTILE: 1.0, "loss": HOSTILE}))
    EventWriter(root, 1, "driver").write("note", f"{HOSTILE}\n{HOSTILE}")
    logs, metrics = LogWriter(root, 1, 0), MetricsWriter(root, 1)
    logs.write(HOSTILE)
    logs.flush()
    metrics.append([Metric(1, 0, 0, 1.0, {HOSTILE: HOSTILE, "loss": 1.0})])
    metrics.flush()
    result = run_cli(*command)
    assert escape_controls(result.stdout) == result.stdout
    assert escape_controls(result.stderr) == result.stderr
    assert "owned" in result.stdout + result.stderr


def test_a_table_stays_one_whatever_its_cells_say(capsys):
    draw_table(data_console(), ("Name", "Text"), [("a\nb", "x\ny"), (HOSTILE, "z" * 10_000)], text_column="Text")
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert sum(r"a\nb" in line for line in lines) == 1
    assert "".join(lines).count("owned") == 1
