from __future__ import annotations

import dataclasses

import pytest
from simulated_nodes import facts_of

from periflow_ray.runtime.monitor import attempt as attempt_module
from periflow_ray.runtime.monitor.attempt import SPEED_WINDOW_S, Attempt


class Clock:
    """Stands in for ``time`` where an attempt asks for it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def time(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(attempt_module, "time", clock)
    return clock


@pytest.fixture
def attempt():
    """An attempt of two nodes."""
    made = Attempt(1, ("group-1", 0), 2)
    made.members = {rank: facts_of(rank, 2) for rank in range(2)}
    return made


def test_the_speed_is_that_of_the_furthest_rank_over_the_last_seconds(attempt, clock):
    assert attempt.step_time_s() is None
    attempt.take_steps(0, {0: 0, 1: 0})
    assert attempt.step_time_s() is None
    for step in range(1, 5):
        clock.now_s += 2.0
        attempt.take_steps(0, {0: step})
        attempt.take_steps(1, {2: step - 1})
    assert attempt.step_time_s() == 2.0
    # Faster now; after a while the slow steps are forgotten.
    for step in range(5, 5 + 3 * int(SPEED_WINDOW_S)):
        clock.now_s += 0.5
        attempt.take_steps(0, {0: step})
    assert attempt.step_time_s() == 0.5


def test_one_observed_step_says_nothing_of_the_speed(attempt, clock):
    attempt.take_steps(0, {0: 10})
    clock.now_s += 5.0
    attempt.take_steps(0, {0: 10})
    assert attempt.step_time_s() is None


def test_reports_that_come_close_together_say_nothing_of_the_speed(attempt, clock):
    # The second node's is newer by a second, not faster.
    attempt.take_steps(0, {0: 10})
    clock.now_s += 0.001
    attempt.take_steps(1, {2: 30})
    assert attempt.step_time_s() is None
    clock.now_s += 1.999
    attempt.take_steps(0, {0: 50})
    assert attempt.step_time_s() == pytest.approx(0.05)


def test_first_and_last_step_are_those_that_were_made(attempt, clock):
    attempt.take_steps(0, {})
    attempt.take_steps(0, {0: 0})
    assert (attempt.first_step_unix_s, attempt.last_step_unix_s) == (None, None)
    for clock.now_s, step in ((1001.0, 1), (1002.0, 2), (1003.0, 2)):
        attempt.take_steps(0, {0: step})
    assert (attempt.first_step_unix_s, attempt.last_step_unix_s, attempt.last_step) == (1001, 1002, 2)


def test_a_node_may_save_a_step_as_long_as_one_of_its_ranks_is_not_beyond_it(attempt):
    assert attempt.may_still_save(0, 10)
    attempt.take_steps(0, {0: 11, 1: 10})
    assert (attempt.may_still_save(0, 10), attempt.has_passed(10)) == (True, False)
    attempt.take_steps(0, {1: 11})
    assert (attempt.may_still_save(0, 10), attempt.has_passed(10)) == (False, True)
    # Of node 1 nothing is known.
    assert attempt.may_still_save(1, 10)


def test_an_attempt_of_which_no_rank_spoke_has_passed_nothing(attempt):
    assert not attempt.has_passed(0)


def test_the_first_cause_of_an_end_stays(attempt):
    assert attempt.end("preemption", "node 1 was taken away")
    assert not attempt.end("failure", "a casualty")
    assert (attempt.cause, attempt.text) == ("preemption", "node 1 was taken away")
    assert [signal.kind for signal in attempt.signals] == ["end"]


def test_nodes_are_found_by_their_machines(attempt):
    # Two agents on one machine, as on an embedded cluster.
    attempt.members[2] = dataclasses.replace(facts_of(2, 3), ray_node_id="ray-node-1")
    assert attempt.ranks_on({"ray-node-1", "another machine of the cluster"}) == [1, 2]
    assert attempt.ranks_on({"another machine of the cluster"}) == []


def test_a_member_that_left_is_not_present(attempt):
    assert attempt.present_nodes() == {0, 1}
    attempt.left.add(1)
    assert attempt.present_nodes() == {0}
    assert not attempt.has_everybody_left


def test_a_meeting_is_over_when_everybody_came_left_or_is_beyond_the_step(attempt):
    attempt.members[2] = facts_of(2, 3)
    attempt.meetings[((10, 1), "written")] = {0}
    assert not attempt.has_met((10, 1), "written")
    attempt.left.add(1)
    assert not attempt.has_met((10, 1), "written")
    attempt.take_steps(2, {2: 11})
    assert attempt.has_met((10, 1), "written")
    assert not attempt.has_met((11, 1), "written")
