"""A storage that is away when an attempt begins: nobody takes its emptiness for the truth, and everybody waits."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from simulated_nodes import Node, ObservedMonitor, facts_of, failure_of, in_thread, wait_for
from simulated_ranks import Pace, Rank, TrainingShell, run_member

from periflow_ray import jobs
from periflow_ray.errors import StorageError
from periflow_ray.jobs import JobState
from periflow_ray.jobs.events import read_events
from periflow_ray.runtime import job_driver
from periflow_ray.runtime.graceful_stop import GracefulStop
from periflow_ray.runtime.job_driver import JobSetup, _Driver
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.runtime.member.member import Outcome
from periflow_ray.runtime.member.restoring import restore_agreed
from periflow_ray.runtime.monitor.context import JobContext
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.store import patience as patience_module
from periflow_ray.store.patience import Patience
from periflow_ray.store.root import StorageRoot


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience_module, "RETRY_INTERVAL_S", 0.01)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the monitor tells: while its storage is away, nobody reads that from there."""
    told: list[str] = []
    monkeypatch.setattr(JobContext, "note", lambda context, text: told.append(text))
    return told


@pytest.fixture
def claimed(root: StorageRoot) -> StorageRoot:
    """A root with job 1."""
    assert jobs.claim_job_id(root) == 1
    jobs.write_state(root, 1, JobState("waiting"))
    return root


@contextlib.contextmanager
def unmounted(root: StorageRoot) -> Iterator[None]:
    """As if the root's file system were not mounted: an empty folder, into which others write meanwhile."""
    place = Path(root.path_of(""))
    mounted, bare = place.with_name("mounted"), place.with_name("bare")
    os.rename(place, mounted)
    place.mkdir(exist_ok=True)
    bare.mkdir(exist_ok=True)
    try:
        yield
    finally:
        for number in itertools.count():
            os.rename(place, bare / str(number))
            with contextlib.suppress(OSError):  # Somebody has just made the empty folder again.
                os.rename(mounted, place)
                break


async def save_and_fail(monitor: ObservedMonitor, root: StorageRoot, base_dir: Path) -> Node:
    """A node whose first attempt has saved step 10, and is over."""
    node = Node(monitor, root, base_dir, 0)
    (node.output_dir / "model.pt").write_text("ten steps")
    await node.join()
    assert await node.save((10, 1)) is None
    await node.leave(failure_of(0))
    return node


def test_an_attempt_begins_when_the_storage_is_back(run_monitor, claimed, notes, tmp_path):
    root = claimed

    async def scenario(monitor: ObservedMonitor) -> None:
        node = await save_and_fail(monitor, root, tmp_path)
        with unmounted(root):
            joining = asyncio.create_task(node.join(round_in_group=1))
            await wait_for(lambda: has_waited(notes))
            assert not joining.done()
        checkpoint = (await joining).checkpoint
        assert checkpoint is not None
        assert checkpoint.step == 10

    run_monitor(scenario, num_members=1)


def test_a_job_that_is_stopped_does_not_wait_for_its_storage(run_monitor, claimed, notes, tmp_path):
    async def scenario(monitor: ObservedMonitor) -> None:
        node = Node(monitor, claimed, tmp_path, 0)
        await node.join()
        await node.leave(failure_of(0))
        with unmounted(claimed):
            joining = asyncio.create_task(node.join(round_in_group=1))
            await wait_for(lambda: has_waited(notes))
            await monitor.stop(0.0)
            with contextlib.suppress(StorageError):
                assert (await joining).is_over

    run_monitor(scenario, num_members=1)


def test_a_checkpoint_is_not_damaged_because_its_file_system_is_not_mounted(run_monitor, claimed, tmp_path):
    root = claimed
    target = tmp_path / "restored"
    told: list[str] = []

    async def scenario(monitor: ObservedMonitor) -> None:
        node = await save_and_fail(monitor, root, tmp_path)
        start = await node.join(round_in_group=1)
        patience = Patience(told.append, look=lambda: jobs.require_job(root, 1, start.claim))
        with unmounted(root):
            restoring = asyncio.create_task(
                in_thread(lambda: restore_agreed(root, monitor.client, 0, 0, start.checkpoint, target, patience))
            )
            await wait_for(lambda: told)
        assert await restoring == start.checkpoint

    run_monitor(scenario, num_members=1)
    assert (target / "model.pt").read_text() == "ten steps"
    assert not any("not used" in text for text in texts_of(root))


class HesitantShell(TrainingShell):
    """Finds the storage away when it is prepared for the first time."""

    root: StorageRoot
    told: list[str]

    def prepare(self, attempt: int, tell: Callable[[str], None]) -> Path:
        self.told.append("prepare")
        if len(self.told) == 1:
            with unmounted(self.root):
                jobs.require_job(self.root, 1, jobs.read_claim(self.root, 1) + "?")
        return super().prepare(attempt, tell)

    def close(self) -> None:
        self.told.append("close")
        super().close()


def test_a_member_that_cannot_be_prepared_is_prepared_again(run_monitor, claimed, tmp_path):
    async def scenario(monitor: ObservedMonitor) -> None:
        def train(rank: Rank) -> None:
            shell.told.append("train")

        shell = HesitantShell(tmp_path, 0, train, Pace())
        shell.root, shell.told = claimed, []
        assert await in_thread(lambda: run_member(monitor.client, claimed, facts_of(0, 1), shell)) == Outcome("end")
        assert shell.told[:4] == ["prepare", "close", "prepare", "train"]

    run_monitor(scenario, num_members=1)


def make_driver(root: StorageRoot, state: StateKeeper) -> _Driver:
    def make_trainer(monitor: object) -> object:
        raise AssertionError("nothing is run")

    setup = JobSetup(1, 1, {}, JobRules(1, 0, Retention()))
    return _Driver(root, 1, state, setup, make_trainer, GracefulStop(state, is_interactive=False))


class _BegunError(Exception):
    """A run has come so far that it needs Ray."""


def _begin(*args: object, **kwargs: object) -> None:
    raise _BegunError


def test_a_driver_waits_for_the_storage_before_it_begins(claimed, monkeypatch):
    refusals = [OSError(30, "Read-only file system"), StorageError("no answer")]

    def forget(root: StorageRoot, job_id: int) -> None:
        if refusals:
            raise refusals.pop(0)

    monkeypatch.setattr(job_driver, "forget_ray_checkpoints", forget)
    monkeypatch.setattr(job_driver, "start_monitor", _begin)
    with StateKeeper(claimed, 1) as state:
        with pytest.raises(_BegunError):
            make_driver(claimed, state)._run_once(may_restart=True)
        state.enter("stopped", "stopped")
    assert refusals == []
    assert has_waited(texts_of(claimed))


def test_a_driver_that_is_stopped_while_it_waits_ends_as_stopped(claimed, monkeypatch):
    def forget(root: StorageRoot, job_id: int) -> None:
        driver._stop.is_asked = True
        raise StorageError("no answer")

    monkeypatch.setattr(job_driver, "forget_ray_checkpoints", forget)
    with StateKeeper(claimed, 1) as state:
        driver = make_driver(claimed, state)
        end = driver._run_once(may_restart=True)
    assert end is not None
    assert end.status == "stopped"
    assert jobs.read_state(claimed, 1).status == "stopped"


def texts_of(root: StorageRoot) -> list[str]:
    return [event.text for event in read_events(root, 1)]


def has_waited(texts: list[str]) -> bool:
    return any(text.startswith("waits for the storage") for text in texts)
