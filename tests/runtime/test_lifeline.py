"""How long a member goes on without an answer from its monitor; that it ends then is held by ``network/cut_off``."""

from __future__ import annotations

import pytest

from periflow_ray.runtime.member.lifeline import MAX_LOST_AFTER_S, PATIENCE_S, Pace


def test_a_member_of_a_small_job_asks_every_two_seconds_and_ends_after_twenty():
    assert Pace.of(0.5) == Pace(2.0, 20.0)


@pytest.mark.parametrize("num_members", [100, 1000, 1500, 2500, 100_000])
def test_a_member_of_a_large_job_asks_long_before_it_ends_however_rarely_it_reports(num_members: int):
    pace = Pace.of(num_members / 32)
    assert pace.lost_after_s - pace.ping_after_s == PATIENCE_S
    assert pace.lost_after_s <= MAX_LOST_AFTER_S


def test_reports_that_are_answered_leave_nothing_to_ask():
    assert Pace.of(20.0).ping_after_s > 20.0
