"""``scripts/bench``: what a row says, and that figures can be measured, in small where they are large."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_figures.registry import FIGURES
from bench_figures.row import Goal, Row, row_of_pairs

REPOSITORY_DIR = Path(__file__).parents[2]
# As scripts/bench has it.
MODULE_DIRS = os.pathsep.join(str(REPOSITORY_DIR / name) for name in ("scripts", "tests"))


def test_a_row_says_what_was_measured_against_what():
    row = Row("sdk_step_cloud", ours=1.4853, baseline=564.9, unit="us", ratio=0.002629, goal=Goal("<=", 0.01))
    assert row.as_line().split() == ["sdk_step_cloud", "1.485", "564.9", "us", "0.002629", "<=0.01", "met"]
    assert row.as_json() == {
        "name": "sdk_step_cloud",
        "ours": 1.4853,
        "baseline": 564.9,
        "unit": "us",
        "ratio": 0.002629,
        "goal": "<=0.01",
        "met": True,
    }


def test_a_goal_with_a_unit_bounds_our_own_value_and_one_without_the_ratio():
    assert Row("cli_start_help", 0.39, 0.02, "s", 19.5, Goal("<", 0.4, "s")).is_met
    assert not Row("cli_start_help", 0.4, 0.5, "s", 0.8, Goal("<", 0.4, "s")).is_met
    assert not Row("ddp_throughput", 96.0, 100.0, "steps/s", 0.96, Goal(">=", 0.98)).is_met


def test_the_ratio_is_the_median_of_the_neighbours_ratios():
    row = row_of_pairs("x", [1.0, 4.0, 9.0], [1.0, 8.0, 10.0], "s", Goal("<=", 1.0))
    assert (row.ours, row.baseline, row.ratio) == (4.0, 8.0, 0.9)


def test_the_promised_figures_are_all_there():
    assert list(FIGURES) == [
        "sdk_step",
        "ddp_throughput",
        "submit_latency",
        "cli_start",
        "ckpt_stall",
        "ckpt_commit",
        "ckpt_interference",
        "ckpt_slow_store",
        "ckpt_memory",
        "dataset_small_files",
        "recovery",
        "goodput",
        "notice_to_save",
        "healthy_overhead",
    ]


def test_cli_start_is_measured_and_written_as_json(tmp_path):
    rows, lines = _measure(tmp_path, "cli_start")
    assert [row["name"] for row in rows] == ["cli_start_help", "cli_start_vm_list"]
    assert [line.split()[0] for line in lines] == ["name", "cli_start_help", "cli_start_vm_list"]


def test_moving_a_dataset_is_measured_with_a_smaller_one(tmp_path):
    rows, _ = _measure(tmp_path, "dataset_small_files", PERIFLOW_BENCH_NUM_FILES="150")
    assert [(row["name"], row["unit"], row["goal"]) for row in rows] == [
        ("dataset_small_files_upload", "files/s", ">=3"),
        ("dataset_small_files_fetch", "files/s", ">=3"),
    ]


@pytest.mark.ray
def test_a_checkpoint_on_a_slow_store_is_measured_with_a_smaller_one(tmp_path):
    rows, _ = _measure(tmp_path, "ckpt_slow_store", PERIFLOW_BENCH_CHECKPOINT_MIB="8")
    assert [(row["name"], row["unit"], row["goal"]) for row in rows] == [("ckpt_slow_store", "s", "<=0.1")]
    # Two MiB at 50 MB/s: Ray's side went through the slow proxy.
    assert rows[0]["baseline"] > 2 * 2**20 / 50e6


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_notice_is_measured_and_costs_no_step(tmp_path):
    rows, _ = _measure(tmp_path, "notice_to_save", timeout_s=850, PERIFLOW_BENCH_NUM_NOTICES="1")
    assert [(row["name"], row["unit"], row["goal"]) for row in rows] == [
        ("notice_to_save_excess", "s", "<=1.5s"),
        ("notice_without_lost_step", "runs", ">=1"),
    ]
    assert rows[1]["met"]


def _measure(
    tmp_path: Path, figure: str, *, timeout_s: float = 200, **env: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows as JSON, and the lines of the table."""
    target = tmp_path / "figures.json"
    path = os.pathsep.join(filter(None, (MODULE_DIRS, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "bench_figures", figure, "--json", str(target)],
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(target.read_text()), done.stdout.splitlines()
