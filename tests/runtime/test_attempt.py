from __future__ import annotations

import dataclasses

import pytest
from simulated_nodes import facts_of, take_steps

from periflow_ray.runtime.monitor import attempt as attempt_module
from periflow_ray.runtime.monitor.attempt import SPEED_WINDOW_S, Attempt
from periflow_ray.runtime.monitor.contract import EndAttempt, Report


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
    for rank in range(2):
        made.add(facts_of(rank, 2))
    return made


def test_ranks_of_one_machine_are_on_one_node():
    ranks = Attempt(1, ("group-1", 0), 3)
    for rank, node_rank in enumerate([0, 0, 1]):
        ranks.add(dataclasses.replace(facts_of(node_rank, 3), member=rank))
    assert (ranks.num_members, ranks.num_nodes) == (3, 2)


def test_the_speed_is_that_of_the_furthest_rank_over_the_last_seconds(attempt, clock):
    assert attempt.step_time_s() is None
    take_steps(attempt, 0, {0: 0, 1: 0})
    assert attempt.step_time_s() is None
    for step in range(1, 5):
        clock.now_s += 2.0
        take_steps(attempt, 0, {0: step})
        take_steps(attempt, 1, {2: step - 1})
    assert attempt.step_time_s() == 2.0
    # Faster now; after a while the slow steps are forgotten.
    for step in range(5, 5 + 3 * int(SPEED_WINDOW_S)):
        clock.now_s += 0.5
        take_steps(attempt, 0, {0: step})
    assert attempt.step_time_s() == 0.5


def test_one_observed_step_says_nothing_of_the_speed(attempt, clock):
    take_steps(attempt, 0, {0: 10})
    clock.now_s += 5.0
    take_steps(attempt, 0, {0: 10})
    assert attempt.step_time_s() is None


def test_reports_that_come_close_together_say_nothing_of_the_speed(attempt, clock):
    # The second node's is newer by a second, not faster.
    take_steps(attempt, 0, {0: 10})
    clock.now_s += 0.001
    take_steps(attempt, 1, {2: 30})
    assert attempt.step_time_s() is None
    clock.now_s += 1.999
    take_steps(attempt, 0, {0: 50})
    assert attempt.step_time_s() == pytest.approx(0.05)


def test_first_and_last_step_are_those_that_were_made(attempt, clock):
    take_steps(attempt, 0, {})
    take_steps(attempt, 0, {0: 0})
    assert (attempt.first_step_unix_s, attempt.last_step_unix_s) == (None, None)
    for clock.now_s, step in ((1001.0, 1), (1002.0, 2), (1003.0, 2)):
        take_steps(attempt, 0, {0: step})
    assert (attempt.first_step_unix_s, attempt.last_step_unix_s, attempt.last_step) == (1001, 1002, 2)


def test_a_node_may_save_a_step_as_long_as_one_of_its_ranks_is_not_beyond_it(attempt):
    assert attempt.may_still_save(0, 10)
    take_steps(attempt, 0, {0: 11, 1: 10})
    assert (attempt.may_still_save(0, 10), attempt.has_passed(10)) == (True, False)
    take_steps(attempt, 0, {0: 11, 1: 11})
    assert (attempt.may_still_save(0, 10), attempt.has_passed(10)) == (False, True)
    # Of node 1 nothing is known.
    assert attempt.may_still_save(1, 10)


def test_of_a_node_with_several_members_one_that_is_not_beyond_the_step_is_enough():
    attempt = Attempt(1, ("group-1", 0), 2)
    for rank in range(2):
        attempt.add(dataclasses.replace(facts_of(rank, 2), node_rank=0))
    take_steps(attempt, 0, {0: 11})
    take_steps(attempt, 1, {1: 10})
    assert (attempt.may_still_save(0, 10), attempt.has_passed(10)) == (True, False)
    take_steps(attempt, 1, {1: 11})
    assert (attempt.may_still_save(0, 10), attempt.has_passed(10)) == (False, True)
    attempt.left.add(0)
    assert attempt.present_nodes() == {0}


def test_a_report_that_comes_twice_counts_once_and_one_that_was_held_up_does_not_turn_back_the_steps(attempt):
    earlier, later = Report(1, 0, 1, {0: 1}), Report(1, 0, 2, {0: 2}, is_pausing=True)
    assert [attempt.take_report(report) for report in (later, later, earlier, earlier)] == [True, False, True, False]
    assert (attempt.last_step, attempt.progress[0].steps, attempt.progress[0].is_pausing) == (2, {0: 2}, True)


def test_an_attempt_of_which_no_rank_spoke_has_passed_nothing(attempt):
    assert not attempt.has_passed(0)


def test_the_first_cause_of_an_end_stays(attempt):
    assert attempt.end("preemption", "node 1 was taken away")
    assert not attempt.end("failure", "a casualty")
    assert (attempt.cause, attempt.text) == ("preemption", "node 1 was taken away")
    assert attempt.orders == [EndAttempt("preemption", "node 1 was taken away")]


def test_nodes_are_found_by_their_machines(attempt):
    # Two members on one machine, as on an embedded cluster.
    attempt.add(dataclasses.replace(facts_of(2, 3), ray_node_id="ray-node-1"))
    assert attempt.ranks_on({"ray-node-1", "another machine of the cluster"}) == [1, 2]
    assert attempt.ranks_on({"another machine of the cluster"}) == []


def test_a_member_that_left_is_not_present(attempt):
    assert attempt.present_nodes() == {0, 1}
    attempt.left.add(1)
    assert attempt.present_nodes() == {0}
    assert not attempt.has_everybody_left


def test_a_phase_of_a_save_is_passed_when_everybody_came_left_or_is_beyond_the_step(attempt):
    attempt.add(facts_of(2, 3))
    attempt.come_to(0, (10, 1), "written")
    assert not attempt.has_passed_phase((10, 1), "written")
    attempt.left.add(1)
    assert not attempt.has_passed_phase((10, 1), "written")
    take_steps(attempt, 2, {2: 11})
    assert attempt.has_passed_phase((10, 1), "written")
    assert not attempt.has_passed_phase((11, 1), "written")
    # Whoever comes later, or again, passes as well.
    attempt.come_to(2, (10, 1), "written")
    assert attempt.has_passed_phase((10, 1), "written")
