from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from support.sample_jobs import build_record

from periflow_ray.cli.picture import find_ticks
from periflow_ray.cli.plot import draw_plot
from periflow_ray.cli.series import Point, build_series, thin_numbers
from periflow_ray.jobs import JobState, write_record, write_state
from periflow_ray.jobs.metrics import Metric, MetricsWriter


def test_names_with_count_and_last_value(run_cli, sample_root):
    assert (
        run_cli("job", "metrics", "list", "1").stdout
        == """\
┏━━━━━━━━━━━━━━┳━━━━━━━┳━━━━━━━━━━━━┳━━━━━━━━━━━┓
┃ Name         ┃ Count ┃ Last value ┃ Last step ┃
┡━━━━━━━━━━━━━━╇━━━━━━━╇━━━━━━━━━━━━╇━━━━━━━━━━━┩
│ loss         │ 20    │ 0.25       │ 20        │
│ lr           │ 20    │ 0.1        │ 20        │
│ val/accuracy │ 2     │ 0.75       │ 20        │
└──────────────┴───────┴────────────┴───────────┘
"""
    )


def test_last_values_by_step(run_cli, sample_root):
    result = run_cli("job", "metrics", "show", "1", "--name", "loss", "--name", "val/accuracy", "--limit", "2")
    assert (result.exit_code, result.stderr) == (0, "")
    assert (
        result.stdout
        == """\
┏━━━━━━┳━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━┳━━━━━━━━━━━━━━┓
┃ Step ┃ Time                ┃ loss     ┃ val/accuracy ┃
┡━━━━━━╇━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━╇━━━━━━━━━━━━━━┩
│ 10   │ 2026-01-01 00:00:10 │          │ nan          │
│ 19   │ 2026-01-01 00:00:19 │ 0.263158 │              │
│ 20   │ 2026-01-01 00:00:20 │ 0.25     │ 0.75         │
└──────┴─────────────────────┴──────────┴──────────────┘
"""
    )


def test_json_is_valid_although_a_metric_is_not_a_number(run_cli, sample_root):
    result = run_cli("job", "metrics", "show", "1", "--name", "val/accuracy", "-o", "json")

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    assert json.loads(result.stdout, parse_constant=refuse) == [
        {
            "name": "val/accuracy",
            "rank": 0,
            "values": [
                {"step": 10, "time": "2026-01-01T00:00:10.000+00:00", "value": "NaN"},
                {"step": 20, "time": "2026-01-01T00:00:20.000+00:00", "value": 0.75},
            ],
        }
    ]


@pytest.mark.parametrize(("options", "ranks"), [([], [0]), (["--rank", "1"], [1]), (["--all-ranks"], [0, 1])])
def test_rank_0_is_shown_unless_another_is_asked_for(run_cli, sample_root, options, ranks):
    document = json.loads(run_cli("job", "metrics", "show", "1", "--name", "loss", "-o", "json", *options).stdout)
    assert [series["rank"] for series in document] == ranks


def test_all_ranks_have_a_column(run_cli, sample_root):
    out = run_cli("job", "metrics", "show", "1", "--name", "loss", "--limit", "1", "--all-ranks").stdout
    assert [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()[3:-1]] == [
        ["20", "0", "2026-01-01 00:00:20", "0.25"],
        ["20", "1", "2026-01-01 00:00:20", "0.3"],
    ]


def test_an_unknown_name_gives_the_nearest(run_cli, sample_root):
    result = run_cli("job", "metrics", "show", "1", "--name", "los")
    assert (result.exit_code, result.stdout, result.stderr) == (
        1,
        "",
        "Error: job 1 has no metric 'los'. Did you mean 'loss'? All: loss, lr, val/accuracy\n",
    )


def test_a_rank_or_job_without_metrics_is_an_error(run_cli, sample_root):
    result = run_cli("job", "metrics", "show", "1", "--rank", "5")
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: job 1 has no metrics of rank 5. Ranks that have some: 0, 1. Try --all-ranks.\n",
    )
    result = run_cli("job", "metrics", "show", "2")
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: job 2 has no metrics. They come from pf.metric({...}) in its script.\n",
    )
    assert run_cli("job", "metrics", "show", "1", "--rank", "0", "--all-ranks").exit_code == 2


def test_the_terminal_plot_can_be_forced(run_cli, root):
    write_record(root, build_record(1))
    write_state(root, 1, JobState("running"))
    writer = MetricsWriter(root, 1)
    writer.append([Metric(step, 0, 0, 0.0, {"loss": 1.0, "note": "warm-up"}) for step in (1, 2)])
    writer.flush()
    assert "┤" not in run_cli("job", "metrics", "show", "1").stdout
    out = run_cli("job", "metrics", "show", "1", "--term-plot").stdout
    assert "\nloss\n" in out
    assert out.endswith("note: no finite numbers to draw.\n")


def test_a_rising_line_is_drawn_from_corner_to_corner():
    plot = draw_plot("accuracy", [[(0, 0.0), (100, 1.0)]], num_columns=8, num_rows=4)
    assert (
        plot
        == """\
accuracy
1 ┤      ⡠⠊
  ┤    ⡠⠊
  ┤  ⡠⠊
0 ┤⡠⠊
  └────────
   0    100"""
    )


def test_a_flat_line_stands_in_the_middle_and_huge_values_do_not_overflow():
    assert draw_plot("lr", [[(1, 0.1), (9, 0.1)]], num_columns=4, num_rows=3).splitlines() == [
        "lr",
        "    ┤",
        "0.1 ┤⠒⠒⠒⠒",
        "    ┤",
        "    └────",
        "     1  9",
    ]
    huge = draw_plot("loss", [[(1, -1.7e308), (2, 1.7e308)]], num_columns=4, num_rows=3)
    assert "1.7e+308 ┤" in huge


def test_steps_that_were_repeated_after_a_restart_replace_the_first_run():
    metrics = [
        Metric(step, 0, 0, float(time), {"loss": value})
        for time, (step, value) in enumerate([(1, 9.0), (2, 8.0), (3, 7.0), (2, 6.0), (2, 5.5), (3, 5.0)])
    ]
    (series,) = build_series(metrics)
    assert (series.name, series.rank) == ("loss", 0)
    assert series.points[:] == (Point(1, 0.0, 9.0), Point(2, 3.0, 6.0), Point(2, 4.0, 5.5), Point(3, 5.0, 5.0))
    assert (len(series.points), series.points[-1], series.points[-2:]) == (4, series.points[3], series.points[2:])


def test_series_come_in_the_order_in_which_their_names_first_appeared():
    metrics = [Metric(1, 1, 1, 0.0, {"loss": 1, "phase": "a"}), Metric(1, 0, 0, 0.0, {"lr": 1.5, "loss": True})]
    assert [(each.name, each.rank, [point.value for point in each.points]) for each in build_series(metrics)] == [
        ("loss", 0, [True]),
        ("loss", 1, [1]),
        ("phase", 1, ["a"]),
        ("lr", 0, [1.5]),
    ]


def test_thinning_keeps_the_spikes():
    numbers = [(step, 100.0 if step == 5123 else float(step % 7)) for step in range(10_000)]
    thinned = thin_numbers(numbers, 100)
    assert len(thinned) <= 101
    assert (5123, 100.0) in thinned
    assert thinned == sorted(thinned)
    assert thin_numbers(numbers[:50], 100) == numbers[:50]


def test_two_values_of_one_step_are_two_rows(run_cli, root):
    write_record(root, build_record(1))
    write_state(root, 1, JobState("running"))
    writer = MetricsWriter(root, 1)
    writer.append([Metric(0, 0, 0, 0.0, values) for values in ({"a": 1}, {"b": 2}, {"a": 3})])
    writer.flush()
    out = run_cli("job", "metrics", "show", "1").stdout
    assert [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()[3:-1]] == [
        ["0", "1970-01-01 00:00:00", "1", "2"],
        ["0", "1970-01-01 00:00:00", "3", ""],
    ]


def test_png_picture(run_cli, sample_root, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "loss.png"
    result = run_cli("job", "metrics", "show", "1", "--all-ranks", "--plot", str(path))
    assert (result.exit_code, result.stderr) == (0, f"Wrote {path}.\n")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_png_without_matplotlib_names_the_extra(sample_root, tmp_path):
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("raise ImportError('not installed')")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from periflow_ray.cli.main import cli; "
        "cli.main(['job', 'metrics', 'show', '1', '--plot', 'loss.png'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: a .png needs matplotlib, which is not installed: pip install 'periflow-ray[plot]'. "
        "A .html picture needs nothing: --plot metrics.html\n"
    )


class PageReader(HTMLParser):
    """Collects what a test asks a page for."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_html_picture_is_self_contained_and_without_scripts(run_cli, sample_root, tmp_path):
    path = tmp_path / "metrics.html"
    result = run_cli("job", "metrics", "show", "1", "--all-ranks", "--plot", str(path))
    assert (result.exit_code, result.stderr) == (0, f"Wrote {path}.\n")
    page = path.read_text()
    reader = PageReader()
    reader.feed(page)
    assert (reader.tags.count("svg"), reader.tags.count("polyline")) == (3, 5)
    assert "script" not in reader.tags
    assert reader.addresses == []
    assert "//" not in page


def test_a_picture_of_another_kind_is_a_usage_error(run_cli, sample_root):
    result = run_cli("job", "metrics", "show", "1", "--plot", "loss.gif")
    assert (result.exit_code, result.stderr) == (2, "Error: --plot loss.gif: the name must end in .png or .html.\n")


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 500, [0, 100, 200, 300, 400, 500]),
        (0.1, 2.3, [0.5, 1, 1.5, 2]),
        (-3, 12, [0, 5, 10]),
        (7, 7, [7]),
        (1e-300, 3e-300, [1e-300, 1.5e-300, 2e-300, 2.5e-300, 3e-300]),
    ],
)
def test_axes_have_round_numbers(low, high, ticks):
    assert find_ticks(low, high) == pytest.approx(ticks)


def test_axes_of_any_numbers_have_few_labels():
    for low, high in ((-1.7e308, 1.7e308), (0.0, 5e-324), (1.0, 1.0000000000000002), (0, 3), (12345, 12351)):
        assert len(find_ticks(low, high)) <= 8
