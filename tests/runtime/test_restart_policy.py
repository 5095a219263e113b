from __future__ import annotations

import pytest

from periflow_ray.runtime.monitor.restart_policy import AttemptEnd, refuse_restart

REPEATED = "it failed 3 times in a row at step 7 without progress"


def failures_at(*steps: int, resumable_step: int = 0) -> list[AttemptEnd]:
    return [AttemptEnd("failure", step, resumable_step) for step in steps]


@pytest.mark.parametrize(
    ("num_failures", "max_failures", "reason"),
    [
        (0, 0, None),
        (1, 0, "it failed 1 time(s); max_failures allows 0"),
        (2, 2, None),
        (3, 2, "it failed 3 time(s); max_failures allows 2"),
        (99, -1, None),
    ],
)
def test_so_many_failures_are_survived(num_failures, max_failures, reason):
    assert refuse_restart(failures_at(*range(num_failures)), max_failures) == reason


@pytest.mark.parametrize("cause", ["preemption", "driver", "resize"])
def test_what_the_job_is_not_to_blame_for_does_not_count(cause):
    assert refuse_restart([AttemptEnd(cause, 7, 7)] * 100, 0) is None


@pytest.mark.parametrize("cause", ["failure", "lost", "hang"])
def test_three_ends_at_one_step_are_enough_however_many_are_allowed(cause):
    end = AttemptEnd(cause, 7, 5)
    assert refuse_restart([end] * 2, -1) is None
    assert refuse_restart([end] * 3, -1) == REPEATED
    # A machine that was taken away in between is no progress.
    assert refuse_restart([end, end, AttemptEnd("preemption", 6, 5), end], -1) == REPEATED


def test_any_progress_begins_the_count_of_repeated_ends_anew():
    # Further, or from a newer checkpoint: it does not fail for the same reason for ever.
    assert refuse_restart([*failures_at(7, 7), *failures_at(8)], -1) is None
    assert refuse_restart([*failures_at(7, 7), *failures_at(7, resumable_step=5)], -1) is None
    assert refuse_restart([*failures_at(9), *failures_at(7, 7, 7)], -1) == REPEATED


@pytest.mark.parametrize(
    ("num_failures", "num_unknown", "max_failures", "reason"),
    [
        (1, 1, 2, None),
        (1, 1, 1, "it failed 1 time(s), and how 1 other attempt(s) ended cannot be read; max_failures allows 1"),
        (2, 5, 1, "it failed 2 time(s); max_failures allows 1"),
        (9, 9, -1, None),
    ],
)
def test_an_attempt_whose_end_is_not_known_may_have_failed(num_failures, num_unknown, max_failures, reason):
    assert refuse_restart(failures_at(*range(num_failures)), max_failures, num_unknown) == reason


@pytest.mark.parametrize("cause", ["preemption", "driver", "resize"])
def test_no_job_ends_by_a_preemption_because_of_attempts_whose_end_is_not_known(cause):
    assert refuse_restart([*failures_at(3), AttemptEnd(cause, 7, 7)], 1, num_unknown=5) is None
