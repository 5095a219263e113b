"""``scripts/bench``: what a row says, and that figures can be measured, in small where they are large."""

from __future__ import annotations

import os
import subprocess
import sys

from bench_figures.registry import FIGURES
from bench_figures.row import Goal, Row, row_of_pairs
from support.bench import MODULE_DIRS, measure


def test_a_row_says_what_was_measured_against_what():
    row = Row("sdk_step_cloud", ours=1.4853, baseline=564.9, unit="us", ratio=0.002629, goal=Goal("<=", 0.01))
    assert row.as_line().split() == ["sdk_step_cloud", "1.485", "564.9", "-", "us", "0.002629", "<=0.01", "met"]
    assert row.as_json() == {
        "name": "sdk_step_cloud",
        "ours": 1.4853,
        "baseline": 564.9,
        "baseline_range": None,
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


def test_a_row_says_how_far_its_baseline_varied_by_itself():
    row = row_of_pairs("x", [9.0, 9.0, 9.0], [10.0, 8.0, 9.0], "s", Goal("<=", 1.1))
    assert row.baseline_range == (8.0, 10.0)
    assert row.as_json()["baseline_range"] == [8.0, 10.0]
    assert row.as_line().split()[:5] == ["x", "9", "9", "22.2%", "s"]
    assert row_of_pairs("x", [9.0], [8.0], "s", Goal("<=", 1.1)).baseline_range is None


def test_all_or_names_but_not_both():
    done = subprocess.run(
        [sys.executable, "-m", "bench_figures", "--all", "cli_start"],
        env={**os.environ, "PYTHONPATH": MODULE_DIRS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--all or names, not both" in done.stderr


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
        "monitor_scale",
        "env_reuse",
        "dataset_small_files",
        "recovery",
        "restart_cost",
        "goodput",
        "notice_to_save",
        "healthy_overhead",
        "image_overhead",
        "sweep",
        "sweep_10000",
        "cluster",
    ]


def test_cli_start_is_measured_and_written_as_json(tmp_path):
    rows, lines = measure(tmp_path, "cli_start")
    assert [row["name"] for row in rows] == ["cli_start_help", "cli_start_vm_list"]
    assert [line.split()[0] for line in lines] == ["name", "cli_start_help", "cli_start_vm_list"]


def test_moving_a_dataset_is_measured_with_a_smaller_one(tmp_path):
    rows, _ = measure(tmp_path, "dataset_small_files", PERIFLOW_BENCH_NUM_FILES="150")
    assert [(row["name"], row["unit"], row["goal"]) for row in rows] == [
        ("dataset_small_files_upload", "files/s", ">=3"),
        ("dataset_small_files_fetch", "files/s", ">=3"),
    ]
