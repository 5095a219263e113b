"""Every call to the monitor is made twice at its place, as after a broken connection: the job's course is the same.

Long because the courses of whole jobs need a job of their own, beside the single calls.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import pytest
from announced_saves import Orders, join_and_train, notice
from simulated_nodes import (
    HeldTransfer,
    ObservedMonitor,
    event_texts,
    facts_of,
    in_thread,
    join_all,
    leave_all,
    save_all,
    wait_for,
)
from simulated_ranks import FunctionLikeShell, Lockstep, Pace, Rank, TrainingShell, WrappedMonitor, run_member

from periflow_ray.jobs.attempts import AttemptRecord, read_attempts
from periflow_ray.jobs.metrics import read_metrics
from periflow_ray.jobs.requests import NoticeDrill
from periflow_ray.runtime.member.member import Outcome
from periflow_ray.runtime.monitor.client import MonitorClient
from periflow_ray.runtime.monitor.contract import AttemptNews, EndAttempt, GroupLoss
from periflow_ray.sdk.session import SAVE_NOW
from periflow_ray.store.checkpoints import list_committed, restore
from periflow_ray.store.root import StorageRoot

# The step of the first attempt at which rank 1 fails.
FAILING_STEP = 7
SAVE_EVERY = 3
STEP_S = 0.01
# The only call that is not safe to repeat.
UNREPEATED = "drill"

Mode = Literal["once", "at_once", "afterwards"]
MODES: tuple[Mode, ...] = ("once", "at_once", "afterwards")
Answer = TypeVar("Answer")


class RepeatingMonitor(WrappedMonitor):
    """Makes each call twice, and takes one of the answers.

    Args:
        mode: the second call comes while the first one waits, or when its answer was lost.
    """

    def __init__(self, monitor: MonitorClient, mode: Mode, threads: ThreadPoolExecutor) -> None:
        super().__init__(monitor)
        self.num_repeated: Counter[str] = Counter()
        self._mode = mode
        self._threads = threads

    def call(self, name: str, args: tuple[object, ...], call: Callable[[], Answer]) -> Answer:
        if self._mode == "once" or name == UNREPEATED:
            return call()
        self.num_repeated[name] += 1
        if self._mode == "afterwards":
            call()
            return call()
        first = self._threads.submit(call)
        answer = call()
        first.result()
        return answer


class Job:
    """Two ranks in lockstep, a metric in each step, a save at every third one and when they are asked for it."""

    def __init__(
        self, client: MonitorClient, root: StorageRoot, base_dir: Path, shell_type: type[TrainingShell] = TrainingShell
    ) -> None:
        self.reached_step = 0
        self.num_steps = 10**6
        self.is_to_fail = False
        self.sent: Counter[tuple[int, int, float]] = Counter()
        """(rank, step, loss) of the metrics that were not lost with a killed rank."""
        self._client = client
        self._root = root
        self._base_dir = base_dir
        self._shell_type = shell_type
        self._locksteps: dict[int, Lockstep] = {}
        self._shells: list[TrainingShell] = []
        self._lock = threading.Lock()

    async def run_group(self, group: str = "group-1") -> list[Outcome]:
        """Two members, as the workers of one group of Ray Train."""
        return await asyncio.gather(*(in_thread(self._member(rank, group)) for rank in range(2)))

    def end_group(self) -> None:
        """As Ray does with the workers that are left."""
        for shell in self._shells:
            shell.leave_group("Ray ends the worker group")

    def _member(self, rank: int, group: str) -> Callable[[], Outcome]:
        shell = self._shell_type(self._base_dir / f"member-{rank}", rank, self._train, Pace())
        self._shells.append(shell)
        return lambda: run_member(self._client, self._root, facts_of(rank, 2), shell, group)

    def _train(self, rank: Rank) -> None:
        with self._lock:
            lockstep = self._locksteps.setdefault(rank.resumed_step, Lockstep(2))
        unsent: list[tuple[int, int, float]] = []
        with rank.open_session() as session:
            for step in range(rank.resumed_step + 1, self.num_steps + 1):
                with session.train_step():
                    rank.is_ended.wait(STEP_S)
                    if self.is_to_fail and rank.resumed_step == 0 and step == FAILING_STEP and rank.rank == 1:
                        raise ValueError("the loss is nan")
                    lockstep.finish(step, rank.is_ended)
                    rank.require_alive()
                    # Another value in each attempt, because some steps are made again.
                    session.metric({"loss": rank.resumed_step + 0.5})
                    unsent.append((rank.rank, step, rank.resumed_step + 0.5))
                self.reached_step = step
                if session.is_emergency_save() or step % SAVE_EVERY == 0:
                    (rank.output_dir / f"rank-{rank.rank}.txt").write_text(str(step))
                    self._sent(unsent)
                    session.upload_checkpoint()
        self._sent(unsent)

    def _sent(self, metrics: list[tuple[int, int, float]]) -> None:
        with self._lock:
            self.sent.update(metrics)
        metrics.clear()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as threads:
        yield threads


def read_contents(root: StorageRoot, target: Path) -> list[tuple[int, list[str]]]:
    """Of each checkpoint its step, and what the ranks wrote into it."""
    found = []
    for manifest in list_committed(root, 1):
        restore(root, manifest, 1, target / manifest.checkpoint)
        files = sorted((target / manifest.checkpoint).iterdir())
        found.append((manifest.step, [file.read_text() for file in files]))
    return found


@pytest.mark.usefixtures("quick_speed")
@pytest.mark.parametrize("mode", MODES)
def test_a_job_with_a_failure_and_a_lost_machine_has_the_same_course(run_monitor, root, tmp_path, threads, mode):
    records: list[AttemptRecord | None] = []
    jobs: list[Job] = []

    async def follow(client: MonitorClient) -> None:
        """As the driver does."""
        for number in (1, 2, 3):
            assert await in_thread(lambda number=number: client.wait_for_attempt(number)) == AttemptNews(number, 2, 2)
            await in_thread(lambda number=number: client.wait_for_start(number))
            records.append(await in_thread(lambda number=number: client.wait_for_end(number)))

    async def scenario(monitor: ObservedMonitor) -> None:
        client = RepeatingMonitor(monitor.client, mode, threads)
        job = Job(client, root, tmp_path)
        jobs.append(job)
        job.is_to_fail = True
        following = asyncio.create_task(follow(client))
        group = asyncio.create_task(job.run_group("group-1"))
        await wait_for(lambda: len(records) == 1 and job.reached_step > 2 * FAILING_STEP and monitor.knows_speed())
        await in_thread(lambda: client.drill(NoticeDrill(1, 3600.0)))
        assert [outcome.following for outcome in await group] == ["new_group"] * 2
        assert await in_thread(lambda: client.may_replace_group(GroupLoss(1, {})))
        newest = await in_thread(client.newest_commit)
        assert newest is not None
        job.num_steps = newest.step + 5
        assert [
            (outcome.following, outcome.failure, outcome.restored) for outcome in await job.run_group("group-2")
        ] == [("end", None, newest)] * 2
        await following
        ending = await in_thread(client.describe_end)
        assert (ending.why_over, ending.failures, ending.text) == (None, (), "")
        assert not monitor.has_unsettled_checkpoints()
        if mode != "once":
            members = ["join", "settle_restore", "start", "report", "next_orders", "announce_snapshot"]
            members += ["begin_checkpoint", "end_checkpoint", "has_committed", "leave", "decide"]
            others = ["wait_for_attempt", "wait_for_start", "wait_for_end", "newest_commit"]
            assert client.num_repeated.keys() >= {*members, *others, "may_replace_group", "describe_end"}

    run_monitor(scenario)
    assert read_attempts(root, 1) == records
    first, second, third = read_attempts(root, 1)
    assert [record.cause for record in (first, second, third)] == ["failure", "preemption", None]
    assert (first.resumable_step, second.resumed_step) == (FAILING_STEP - 1, FAILING_STEP - 1)
    assert second.save is not None
    assert second.save.step == second.last_step == second.resumable_step == third.resumed_step
    # Each checkpoint once, with the files of both ranks.
    contents = read_contents(root, tmp_path / "restored")
    assert contents == [(step, [str(step)] * 2) for step, _ in contents]
    saved = {step for step in range(1, third.last_step + 1) if step % SAVE_EVERY == 0} | {second.save.step}
    assert sorted(saved) == [step for step, _ in contents]
    events = Counter(event_texts(root))
    assert max(events.values()) == 1, events
    assert [sum(kind == each for kind, _ in events) for each in ("attempt_failed", "attempt_ended")] == [1, 1]
    # Metrics: none is lost, none is there twice.
    stored = Counter((metric.rank, metric.step, metric.values["loss"]) for metric in read_metrics(root, 1, rank=None))
    assert max(stored.values()) == 1
    assert not jobs[0].sent - stored


@pytest.mark.usefixtures("quick_speed")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shell_type", [TrainingShell, FunctionLikeShell])
def test_a_stop_with_a_save_has_the_same_course(run_monitor, root, tmp_path, threads, shell_type, mode):
    async def scenario(monitor: ObservedMonitor) -> None:
        client = RepeatingMonitor(monitor.client, mode, threads)
        job = Job(client, root, tmp_path, shell_type)
        group = asyncio.create_task(job.run_group())
        await wait_for(lambda: job.reached_step > SAVE_EVERY and monitor.knows_speed())
        had_members = await in_thread(lambda: client.stop(3600.0))
        # They may have left when the second answer came.
        assert had_members or mode == "afterwards"
        assert [outcome.following for outcome in await group] == ["end"] * 2
        if shell_type is FunctionLikeShell and mode != "once":
            assert client.num_repeated.keys() >= {"barrier", "wait_for_start", "has_committed", "stop"}

    run_monitor(scenario)
    (record,) = read_attempts(root, 1)
    assert record.save is not None
    assert (record.cause, record.save.step) == ("stop", record.last_step)
    events = Counter(event_texts(root))
    assert max(events.values()) == 1, events
    contents = read_contents(root, tmp_path / "restored")
    assert contents == [(step, [str(step)] * 2) for step, _ in contents]
    assert contents[-1][0] == record.last_step


def test_a_failed_functions_last_words_have_the_same_course(run_monitor, root, tmp_path, threads):
    async def scenario(monitor: ObservedMonitor) -> None:
        client = RepeatingMonitor(monitor.client, "at_once", threads)
        job = Job(client, root, tmp_path, FunctionLikeShell)
        job.is_to_fail = True
        group = asyncio.create_task(job.run_group())
        await wait_for(lambda: client.num_repeated["settle_uploads"] and client.num_repeated["leave"])
        assert await in_thread(lambda: client.may_replace_group(GroupLoss(1, {}))) is True
        ending = await in_thread(client.describe_end)
        assert [failure.summary for failure in ending.failures] == ["ValueError: the loss is nan"]
        job.end_group()
        await group

    run_monitor(scenario)
    assert [record.cause for record in read_attempts(root, 1)] == ["failure"]


# What is said once more when the state has changed meanwhile.


def test_a_member_that_leaves_twice_takes_no_save_with_it(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await second.leave()
        held = HeldTransfer(root)
        saving = await first.begin_save((10, 1), held)
        await monitor.stop(0.0)
        # It ended well, before the attempt was ended.
        await second.leave()
        held.let_go()
        assert await saving is None

    run_monitor(scenario)


def test_a_snapshot_that_is_announced_again_when_it_is_described_is_not_waited_for(run_monitor, nodes):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        saving = await first.begin_save((10, 1))
        await first.announce((10, 1))
        assert await second.save((10, 1)) is None
        assert await saving is None

    run_monitor(scenario)


def test_a_withdrawal_is_told_once_and_harms_no_other_snapshot(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await first.announce((10, 1))
        for _ in range(2):
            await monitor.withdraw_snapshot(1, (10, 1), "no room")
        assert await second.save((10, 1)) == "no room"
        await monitor.withdraw_snapshot(1, (10, 1), "no room")
        assert await save_all([first, second], (20, 1)) == [None, None]

    run_monitor(scenario)
    assert [text for kind, text in event_texts(root) if kind == "checkpoint_failed"] == [
        "checkpoint at step 10 was not saved: no room"
    ]


@pytest.mark.usefixtures("quick_speed")
def test_a_missed_step_that_is_told_twice_voids_no_later_one(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_and_train(pair)
        orders, leaving = Orders(monitor), notice(monitor)
        step = await orders.next_save(pair, 3)
        await monitor.miss_save(1, step)
        later = await orders.next_save(pair, step)
        await monitor.miss_save(1, step)
        assert await save_all(pair, (later, 1)) == [None, None]
        await leaving

    run_monitor(scenario)
    assert [manifest.step for manifest in list_committed(root, 1)] != []


def test_a_job_that_is_to_grow_twice_grows_once(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        growing = [asyncio.create_task(monitor.grow(4)) for _ in range(2)]
        orders = Orders(monitor)
        assert await orders.next_save(pair, 1) == SAVE_NOW
        assert await save_all(pair, (1, 1)) == [None, None]
        await asyncio.gather(*growing)
        assert isinstance(await orders.next(), EndAttempt)
        await leave_all(pair)
        assert await monitor.decide(1) == "new_group"

    run_monitor(scenario)
    grown = "grows from 2 to 4 workers"
    assert [text for _, text in event_texts(root) if grown in text] == [
        f"the job {grown}",
        f"attempt 1 ended: {grown}",
    ]
