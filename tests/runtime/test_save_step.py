from __future__ import annotations

import pytest

from periflow_ray.runtime.monitor.save_step import choose_save_step
from periflow_ray.sdk.session import SAVE_NOW


@pytest.mark.parametrize(
    ("steps", "step_time_s", "announce_s", "chosen"),
    [
        # A step of a second: the announcement arrives during the current one, so the next is the first to agree on.
        ([100, 100], 1.0, 0.3, 102),
        # The rank that is furthest counts; the others still come to that step.
        ([90, 100, 95], 1.0, 0.3, 102),
        # Quick steps: those that are made while the announcement is on its way are let go by.
        ([100], 0.01, 0.3, 131),
        ([100], 0.1, 0.3, 104),
        # A longer announcement, after a rank missed the first.
        ([100], 0.1, 0.6, 107),
        ([100], 0.0, 0.3, 101),
    ],
)
def test_the_first_step_that_nobody_can_have_passed_is_chosen(steps, step_time_s, announce_s, chosen):
    step = choose_save_step(steps, step_time_s, announce_s=announce_s, save_time_s=5.0, time_left_s=30.0)
    assert step == chosen


@pytest.mark.parametrize(("time_left_s", "chosen"), [(None, 102), (7.0, 102), (6.9, SAVE_NOW), (-1.0, SAVE_NOW)])
def test_a_step_that_cannot_be_saved_in_time_is_not_waited_for(time_left_s, chosen):
    step = choose_save_step([100], 1.0, announce_s=0.3, save_time_s=5.0, time_left_s=time_left_s)
    assert step == chosen


def test_where_no_speed_is_known_the_save_is_now():
    assert choose_save_step([0, 0], None, announce_s=0.3, save_time_s=0.0, time_left_s=30.0) == SAVE_NOW
