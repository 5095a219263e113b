from __future__ import annotations

from periflow_ray.jobs import stop_times


def test_a_driver_that_gets_a_signal_saves_and_ends_before_ray_kills_it():
    needed_s = stop_times.SIGNAL_SAVE_TIMEOUT_S + stop_times.COMMAND_GRACE_S + stop_times.HURRIED_TEARDOWN_S
    assert needed_s + 10 <= stop_times.RAY_STOP_WAIT_S


def test_commands_have_ended_when_a_stop_is_given_up():
    assert stop_times.COMMAND_GRACE_S < stop_times.END_TIMEOUT_S
