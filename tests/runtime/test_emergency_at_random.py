"""Whatever the speeds and delays: all ranks save at one step, and no checkpoint is of several."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from simulated_nodes import ObservedMonitor, event_texts, wait_for
from simulated_ranks import Lockstep, Pace, TrainingNode, WrappedMonitor, train_all, wait_for_steps

from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.jobs.requests import NoticeDrill
from periflow_ray.runtime.member import insistent
from periflow_ray.runtime.monitor import announced_save, attempt
from periflow_ray.runtime.monitor.client import MonitorClient
from periflow_ray.store.checkpoints import list_committed, restore
from periflow_ray.store.root import StorageRoot

Answer = TypeVar("Answer")


@pytest.fixture(autouse=True)
def optimistic_announcements(monkeypatch):
    """Ranks are often late when announcements are thought to be this quick."""
    monkeypatch.setattr(attempt, "MIN_SPEED_SPAN_S", 0.02)
    monkeypatch.setattr(announced_save, "ANNOUNCE_S", 0.004)


def saved_steps(root: StorageRoot, target: Path) -> list[tuple[int, set[int]]]:
    """Of each committed checkpoint its step, and the steps that its files are of."""
    found = []
    for manifest in list_committed(root, 1):
        steps = set()
        for node_rank in range(manifest.num_nodes):
            restore(root, manifest, node_rank, target / manifest.checkpoint / str(node_rank))
            own = target / manifest.checkpoint / str(node_rank) / f"rank-{node_rank}.txt"
            steps.add(int(own.read_text()) if own.exists() else -1)
        found.append((manifest.step, steps))
    return found


def describe(root: StorageRoot, trained: list[TrainingNode]) -> str:
    return "\n".join(
        [*map(str, event_texts(root)), *(f"{node.emergency_steps} {node.saved_steps}" for node in trained)]
    )


class UnluckyMonitor(WrappedMonitor):
    """Loses all calls about the ends of some checkpoints of one member.

    Args:
        share: of the checkpoints that the member has to give up.
    """

    def __init__(self, monitor: MonitorClient, own: random.Random, share: float) -> None:
        super().__init__(monitor)
        self._own = own
        self._share = share
        self._is_lost: dict[object, bool] = {}

    def call(self, name: str, args: tuple[object, ...], call: Callable[[], Answer]) -> Answer:
        if name == "end_checkpoint" and self._is_lost.setdefault(args[2], self._own.random() < self._share):
            raise RuntimeError("the call was lost")
        return call()


@pytest.mark.parametrize("seed", range(24))
def test_all_ranks_save_at_one_step(run_monitor, root, tmp_path, seed):
    trained = run_at_random(run_monitor, root, tmp_path, seed, lost_share=0.0)
    (record,) = read_attempts(root, 1)
    assert record.cause == "preemption", event_texts(root)
    assert record.save is not None
    step = record.save.step
    # Everybody saved there, once, and trained no further.
    assert [node.saved_steps.count(step) for node in trained] == [1] * len(trained), describe(root, trained)
    assert {node.last_step for node in trained} == {step}, describe(root, trained)
    assert record.last_step == record.resumable_step == step
    # Never twice at one step; more than once only where the step before was void.
    announced = [text for _, text in event_texts(root) if text.startswith("all ranks are asked to save")]
    for node in trained:
        assert len(set(node.emergency_steps)) == len(node.emergency_steps) <= len(announced)
    # Nothing that was committed mixes steps.
    committed = saved_steps(root, tmp_path / "restored")
    assert committed == [(saved, {saved}) for saved, _ in committed]
    assert committed[-1][0] == step


@pytest.mark.parametrize("seed", range(8))
def test_no_checkpoint_mixes_steps_though_nodes_give_up_some(run_monitor, root, tmp_path, monkeypatch, seed):
    monkeypatch.setattr(insistent, "RETRY_INTERVAL_S", 0.002)
    trained = run_at_random(run_monitor, root, tmp_path, seed, lost_share=0.15)
    (record,) = read_attempts(root, 1)
    assert record.save is not None, describe(root, trained)
    committed = saved_steps(root, tmp_path / "restored")
    assert committed == [(saved, {saved}) for saved, _ in committed], describe(root, trained)
    assert record.save.step in [saved for saved, _ in committed]


def run_at_random(
    run_monitor: Callable[..., None], root: StorageRoot, tmp_path: Path, seed: int, lost_share: float
) -> list[TrainingNode]:
    """A job of random nodes, until it has saved because of a notice.

    Args:
        lost_share: of the checkpoints that each node has to give up.
    """
    chance = random.Random(seed)
    num_nodes = chance.choice([2, 3, 4])
    is_lockstep = chance.random() < 0.5
    notice_after_s = chance.choice([0.0, 0.05, 0.2])
    save_every = chance.choice([0, 10, 40])
    # A rank in a long computation, or behind a busy network, hears late now and then.
    late_s, late_share = chance.choice([(0.0, 0.0), (0.03, 0.5), (0.1, 0.3)])
    trained: list[TrainingNode] = []

    def pace_of(node_rank: int) -> Pace:
        own = random.Random(f"{seed} {node_rank}")
        step_s = own.uniform(0.0005, 0.004)
        return Pace(
            step_s=lambda: step_s * own.uniform(0.5, 1.5),
            announcement_s=lambda: late_s * own.random() if own.random() < late_share else 0.0,
            snapshot_s=lambda: own.uniform(0.0, 0.004),
        )

    async def scenario(monitor: ObservedMonitor) -> None:
        lockstep = Lockstep(num_nodes) if is_lockstep else None
        for rank in range(num_nodes):
            client = UnluckyMonitor(monitor.client, random.Random(f"{seed} {rank} lost"), lost_share)
            pace = pace_of(rank)
            trained.append(
                TrainingNode(
                    monitor, root, tmp_path, rank, num_nodes, pace, lockstep, save_every=save_every, client=client
                )
            )
        training = asyncio.gather(*(node.run() for node in trained))
        await wait_for_steps(trained)
        await asyncio.sleep(notice_after_s)
        notice = asyncio.create_task(monitor.drill(NoticeDrill(num_nodes - 1, 3600.0)))
        await training
        await notice
        await monitor.decide(1)

    run_monitor(scenario, num_members=num_nodes)
    return trained


def test_a_rank_that_hears_too_late_has_all_save_at_a_later_step(run_monitor, root, tmp_path, monkeypatch):
    """So do those above, where chance has it: here every rank but the first hears the first time too late."""
    monkeypatch.setattr(announced_save, "ANNOUNCE_S", 0.5)

    async def scenario(monitor: ObservedMonitor) -> None:
        num_heard = 0

        def hear_late() -> float:
            """The first time, beyond the step at which the other rank has saved."""
            nonlocal num_heard
            num_heard += 1
            while num_heard == 1 and trained[1].last_step <= (trained[0].emergency_steps or [math.inf])[0]:
                time.sleep(0.001)
            return 0.0

        paces = [Pace(), Pace(announcement_s=hear_late)]
        trained = [TrainingNode(monitor, root, tmp_path, rank, 2, paces[rank]) for rank in range(2)]
        training = asyncio.create_task(train_all(trained))
        await wait_for_steps(trained)
        await wait_for(monitor.knows_speed)
        await monitor.drill(NoticeDrill(1, 3600.0))
        await training
        await monitor.decide(1)
        assert trained[1].emergency_steps == trained[0].emergency_steps[-1:]

    run_monitor(scenario)
    asked = [text for _, text in event_texts(root) if text.startswith("all ranks are asked to save")]
    assert len(asked) >= 2
    (record,) = read_attempts(root, 1)
    assert record.save is not None
    assert [step for step, _ in saved_steps(root, tmp_path / "restored")] == [record.save.step]
