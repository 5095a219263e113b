"""The step of an emergency save, as it reaches a script: True once, at that step, on every rank that hears in time."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from periflow_ray.sdk.channel import Hello, MetricRecord
from periflow_ray.sdk.session import NO_STEP, SAVE_NOW, Session


class Announcer:
    """A channel over which a test announces steps: ``announcer.announce(12)`` tells whether the rank hears in time."""

    def open(self, hello: Hello, on_announced_step: Callable[[int], bool], read_step: Callable[[], int]) -> None:
        self.announce, self.read_step = on_announced_step, read_step

    def send(self, step: int, records: list[MetricRecord]) -> None:
        """Nobody listens."""

    def save_checkpoint(self, step: int, replace_waiting: bool) -> None:
        """It is there at once."""

    def close(self, has_failed: bool = False) -> None:
        """Nothing is held open."""


@pytest.fixture
def announcer(session):
    announcer = Announcer()
    session.use_channel_factory(lambda local_log_name: announcer)
    session.init()
    return announcer


def train(session: Session, num_steps: int, asks_every: int = 1) -> list[int]:
    """The steps at which the script is asked to save."""
    asked = []
    for _ in range(num_steps):
        with session.train_step():
            if session._step % asks_every == 0 and session.is_emergency_save():
                asked.append(session._step)
    return asked


def test_a_step_that_is_announced_before_it_comes_is_heard_in_time(session, announcer):
    assert train(session, 3) == []
    assert announcer.announce(5) is True
    assert train(session, 10) == [5]


def test_a_step_that_is_over_is_late_and_nobody_saves(session, announcer):
    assert train(session, 5) == []
    for step in (1, 4, 5):
        assert announcer.announce(step) is False
    assert train(session, 10) == []


def test_the_step_under_way_is_in_time_until_the_script_has_asked(session, announcer):
    with session.train_step():
        assert announcer.announce(1) is True
        assert session.is_emergency_save() is True
    with session.train_step():
        assert session.is_emergency_save() is False
        assert announcer.announce(2) is False
        # It said that it is late, so it must not save either, unless asked again in this very step.
    assert train(session, 3) == []


def test_the_same_step_announced_twice_is_no_late_one(session, announcer):
    assert announcer.announce(1) is True
    assert train(session, 1) == [1]
    # For example to a rank that connected again.
    assert announcer.announce(1) is True
    assert train(session, 3) == []


def test_a_later_announcement_takes_the_place_of_an_earlier_one(session, announcer):
    assert announcer.announce(3) is True
    assert announcer.announce(5) is True
    assert train(session, 10) == [5]


def test_a_withdrawn_announcement_is_forgotten(session, announcer):
    assert announcer.announce(3) is True
    assert announcer.announce(NO_STEP) is True
    assert train(session, 5) == []
    assert announcer.announce(SAVE_NOW) is True
    assert announcer.announce(NO_STEP) is True
    assert train(session, 5) == []


def test_now_is_the_next_question_and_only_that(session, announcer):
    assert train(session, 3) == []
    assert announcer.announce(SAVE_NOW) is True
    assert train(session, 5) == [4]
    # A second one is another save.
    assert announcer.announce(SAVE_NOW) is True
    assert train(session, 5) == [9]


def test_now_stays_true_for_the_rest_of_its_step(session, announcer):
    announcer.announce(SAVE_NOW)
    with session.train_step():
        assert [session.is_emergency_save() for _ in range(3)] == [True] * 3
    assert train(session, 2) == []


def test_a_resumed_job_counts_on_from_the_resumed_step(session, monkeypatch):
    announcer = Announcer()
    monkeypatch.setenv("PROCESSED_ITERS", "100")
    session.use_channel_factory(lambda local_log_name: announcer)
    session.init()
    assert announcer.announce(102) is True
    assert train(session, 5) == [102]


def test_a_new_session_knows_nothing_of_the_announcements_to_the_one_before(session, announcer):
    announcer.announce(1)
    assert train(session, 1) == [1]
    session.init()
    assert train(session, 1) == []
    # Nor does it believe that it has saved this step.
    assert announcer.announce(1) is False


def test_a_script_that_asks_now_and_then_saves_at_its_first_question_from_the_step_on(session, announcer):
    assert announcer.announce(2) is True
    assert train(session, 12, asks_every=4) == [4]
    # The question at step 12 comes before this announcement, so that other ranks may have saved there.
    assert announcer.announce(11) is False
    assert train(session, 12, asks_every=4) == []
    assert announcer.announce(25) is True
    assert train(session, 12, asks_every=5) == [25]


@pytest.mark.parametrize("seed", range(20))
def test_whoever_hears_in_time_saves_and_whoever_is_late_does_not(session, announcer, seed):
    chance = random.Random(seed)
    announced: list[tuple[int, bool]] = []
    asked = []

    def announce_perhaps(step: int) -> None:
        if step < 190 and chance.random() < 0.05:
            wanted = max(1, step + chance.randint(-3, 6))
            announced.append((wanted, announcer.announce(wanted)))

    for step in range(1, 200):
        session.start_step()
        announce_perhaps(step)
        if session.is_emergency_save():
            asked.append(step)
        announce_perhaps(step)
        session.end_step()
    assert len(asked) == len(set(asked))
    # Nobody saves at a step that it called late.
    assert set(asked) <= {wanted for wanted, is_in_time in announced if is_in_time}
    # Whoever heard in time saves, unless another announcement took the place of this one first.
    for (wanted, is_in_time), is_replaced in zip(announced, [*(True for _ in announced[1:]), False], strict=True):
        assert not is_in_time or is_replaced or wanted in asked


def test_a_late_rank_says_so_to_its_member(member, join_rank, wait_until):
    in_time, late = join_rank(0, of=2), join_rank(1, of=2)
    assert train(late, 5) == []
    member.server.announce(4)
    wait_until(lambda: member.late == [4])
    # Whoever answers this has heard the announcement before.
    member.server.ask_steps(timeout_s=60.0)
    assert train(in_time, 5) == [4]
    assert train(late, 5) == []


def test_a_rank_that_joins_after_the_withdrawal_hears_of_nothing(member, join_rank):
    member.server.announce(SAVE_NOW)
    member.server.announce(NO_STEP)
    rank = join_rank(0)
    # Its first answer comes after anything that it was told at the beginning.
    rank.upload_checkpoint()
    assert train(rank, 3) == []


def test_ranks_of_a_node_that_save_now_at_different_steps_have_no_checkpoint(member, join_rank):
    first, second = join_rank(0, of=2), join_rank(1, of=2)
    # It asked at step 1 before it heard, so it saves at step 2.
    assert train(second, 1) == []
    member.server.announce(SAVE_NOW)
    with ThreadPoolExecutor(2) as pool:
        first.start_step()
        at_first = pool.submit(first.upload_checkpoint)
        second.start_step()
        at_second = pool.submit(second.upload_checkpoint)
        at_first.result(timeout=60)
        first.end_step()
        train(first, 2)
        at_second.result(timeout=60)
    assert member.snapshots == []
    # Once, where both were waiting when it was found out; else each.
    assert set(member.late) == {SAVE_NOW}


def test_ranks_of_a_node_that_save_now_at_one_step_have_one(member, join_rank):
    sessions = [join_rank(rank, of=2) for rank in range(2)]
    member.server.announce(SAVE_NOW)
    with ThreadPoolExecutor(2) as pool:
        for session in sessions:
            session.start_step()
        list(pool.map(lambda session: session.upload_checkpoint(), sessions))
    assert (member.snapshots, member.late) == ([1], [])
