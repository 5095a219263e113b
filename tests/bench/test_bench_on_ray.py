"""``scripts/bench``: figures of whole jobs can be measured, in small. What they measure, other tests hold."""

from __future__ import annotations

import pytest
from support.bench import measure

pytestmark = [pytest.mark.ray, pytest.mark.long]


def test_a_checkpoint_on_a_slow_store_is_measured_with_a_smaller_one(tmp_path):
    rows, _ = measure(tmp_path, "ckpt_slow_store", PERIFLOW_BENCH_CHECKPOINT_MIB="8")
    assert [(row["name"], row["unit"], row["goal"]) for row in rows] == [("ckpt_slow_store", "s", "<=0.1")]
    # Two MiB at 50 MB/s: Ray's side went through the slow proxy.
    assert rows[0]["baseline"] > 2 * 2**20 / 50e6


@pytest.mark.timeout(900)
def test_a_notice_is_measured_and_costs_no_step(tmp_path):
    rows, _ = measure(tmp_path, "notice_to_save", timeout_s=850, PERIFLOW_BENCH_NUM_NOTICES="1")
    assert [(row["name"], row["unit"], row["goal"]) for row in rows] == [
        ("notice_to_save_excess", "s", "<=1.5s"),
        ("notice_without_lost_step", "runs", ">=1"),
    ]
    assert rows[1]["met"]
