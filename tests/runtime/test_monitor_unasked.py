"""A notice, or a stop, to a script that seldom or never asks ``is_emergency_save``."""

from __future__ import annotations

import asyncio
import random

import pytest
from simulated_nodes import ObservedMonitor, event_texts, wait_for
from simulated_ranks import Lockstep, Pace, TrainingNode, train_all, wait_for_steps

from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.jobs.requests import NoticeDrill
from periflow_ray.store.checkpoints import list_committed

pytestmark = pytest.mark.usefixtures("quick_speed")


def test_a_script_that_never_asks_is_stopped_without_a_save_and_told_so(run_monitor, root, tmp_path):
    async def scenario(monitor: ObservedMonitor) -> None:
        trained = [TrainingNode(monitor, root, tmp_path, rank, 2, Pace(), asks_every=0) for rank in range(2)]
        training = asyncio.create_task(train_all(trained))
        await wait_for_steps(trained)
        await monitor.stop(3600.0)
        await training
        assert await monitor.decide(1) == "end"

    run_monitor(scenario)
    assert list_committed(root, 1) == []
    (attempt,) = read_attempts(root, 1)
    assert attempt.cause == "stop"
    assert event_texts(root)[-1][1].endswith("it never asked is_emergency_save()")


def test_of_a_script_that_never_asks_the_next_periodic_checkpoint_is_the_last(run_monitor, root, tmp_path):
    async def scenario(monitor: ObservedMonitor) -> None:
        trained = [
            TrainingNode(monitor, root, tmp_path, rank, 2, Pace(), asks_every=0, save_every=1000) for rank in range(2)
        ]
        training = asyncio.create_task(train_all(trained))
        await wait_for_steps(trained)
        await monitor.drill(NoticeDrill(1, 3600.0))
        await training
        assert await monitor.decide(1) == "new_group"

    run_monitor(scenario)
    (attempt,) = read_attempts(root, 1)
    assert attempt.cause == "preemption"
    # The first one that was due after the step that was asked for.
    assert attempt.last_step == attempt.resumable_step
    assert attempt.last_step % 1000 == 0


@pytest.mark.parametrize("asks_every", [4, 64])
@pytest.mark.parametrize("is_stop", [True, False], ids=["stop", "notice"])
def test_a_script_that_asks_now_and_then_saves_at_the_first_question_that_all_hear(
    run_monitor, root, tmp_path, asks_every, is_stop
):
    pace = Pace(announcement_s=lambda: random.uniform(0.0, 0.1))
    trained: list[TrainingNode] = []

    async def scenario(monitor: ObservedMonitor) -> None:
        lockstep = Lockstep(2)
        trained[:] = [
            TrainingNode(monitor, root, tmp_path, rank, 2, pace, lockstep, asks_every=asks_every) for rank in range(2)
        ]
        training = asyncio.create_task(train_all(trained))
        await wait_for(lambda: min(node.last_step for node in trained) > asks_every)
        await (monitor.stop(3600.0) if is_stop else monitor.drill(NoticeDrill(1, 3600.0)))
        await training

    run_monitor(scenario)
    (attempt,) = read_attempts(root, 1)
    assert attempt.save is not None
    assert attempt.save.step == attempt.resumable_step == attempt.last_step
    assert attempt.last_step % asks_every == 0
    assert [node.saved_steps[-1] for node in trained] == [attempt.last_step] * 2


def test_a_script_that_hears_late_of_the_save_does_ask(run_monitor, root, tmp_path):
    pace = Pace(announcement_s=lambda: 0.5)

    async def scenario(monitor: ObservedMonitor) -> None:
        trained = [TrainingNode(monitor, root, tmp_path, rank, 2, pace) for rank in range(2)]
        training = asyncio.create_task(train_all(trained))
        await wait_for_steps(trained)
        await monitor.stop(3600.0)
        await training

    run_monitor(scenario)
    (attempt,) = read_attempts(root, 1)
    assert attempt.save is not None
    assert attempt.save.step == attempt.resumable_step == attempt.last_step
