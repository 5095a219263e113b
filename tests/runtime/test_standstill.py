"""For how long an attempt has stood still: what ``hang_timeout`` is compared with."""

from __future__ import annotations

import pytest
from simulated_nodes import facts_of, take_steps

from periflow_ray.runtime.monitor import attempt as attempt_module
from periflow_ray.runtime.monitor.attempt import Attempt


class Clock:
    """Stands still unless it is moved."""

    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(attempt_module, "time", clock)
    return clock


def make_attempt(num_nodes: int = 2) -> Attempt:
    """One rank a node, each in its second step."""
    attempt = Attempt(1, ("group-1", 0), num_nodes)
    for node_rank in range(num_nodes):
        attempt.add(facts_of(node_rank, num_nodes))
        take_steps(attempt, node_rank, {node_rank: 2})
    return attempt


def test_a_step_of_any_rank_ends_the_standstill(clock: Clock) -> None:
    attempt = make_attempt()
    clock.now_s += 60
    assert attempt.standstill_s() == 60
    take_steps(attempt, 1, {1: 2})
    assert attempt.standstill_s() == 60
    # Behind the other one, but it moves.
    take_steps(attempt, 0, {0: 9})
    clock.now_s += 5
    take_steps(attempt, 1, {1: 3})
    clock.now_s += 7
    assert attempt.standstill_s() == 7


def test_time_counts_from_the_first_session_on_and_the_first_step_is_told_apart(clock: Clock) -> None:
    attempt = Attempt(1, ("group-1", 0), 1)
    attempt.add(facts_of(0, 1))
    clock.now_s += 3600
    assert attempt.standstill_s() == 0
    for step in (0, 1, 2):
        take_steps(attempt, 0, {0: step})
        clock.now_s += 10
        assert (attempt.standstill_s(), attempt.is_warm) == (10, step == 2)


def test_a_pause_of_all_nodes_is_no_standstill_but_one_rank_that_has_to_move_is_enough(clock: Clock) -> None:
    attempt = make_attempt()
    take_steps(attempt, 0, {0: 2}, is_pausing=True)
    clock.now_s += 60
    assert attempt.standstill_s() == 60
    take_steps(attempt, 1, {1: 2}, is_pausing=True)
    assert attempt.standstill_s() == 0
    clock.now_s += 60
    assert attempt.standstill_s() == 0
    # Through with the checkpoint: the time begins anew.
    take_steps(attempt, 1, {1: 2})
    clock.now_s += 4
    assert attempt.standstill_s() == 4


def test_a_node_that_has_left_has_nothing_to_do(clock: Clock) -> None:
    attempt = make_attempt()
    attempt.left.add(0)
    clock.now_s += 60
    assert attempt.standstill_s() == 60
    attempt.left.add(1)
    assert attempt.standstill_s() == 0
