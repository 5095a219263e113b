"""An error at every call of a member to its monitor: it costs neither a checkpoint nor a metric, and nobody waits.

Each call fails the first, the second and the last time, before it arrives or after.

Long because every call and every time of it is a case.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import pytest
from simulated_nodes import (
    HeldTransfer,
    Node,
    ObservedMonitor,
    event_texts,
    facts_of,
    failure_of,
    in_thread,
    join_all,
    save_all,
    wait_for,
)
from simulated_ranks import (
    FunctionLikeShell,
    Lockstep,
    Pace,
    Rank,
    TrainingNode,
    TrainingShell,
    WrappedMonitor,
    run_member,
    train_all,
    wait_for_steps,
)

from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.jobs.metrics import read_metrics
from periflow_ray.jobs.requests import KillRankDrill, NoticeDrill
from periflow_ray.runtime.member import insistent, orders
from periflow_ray.runtime.member.insistent import NUM_TRIES, InsistentMonitor
from periflow_ray.runtime.member.member import Outcome
from periflow_ray.runtime.member.reporter import Reporter
from periflow_ray.runtime.member.shell import Records
from periflow_ray.runtime.member.uploads import CheckpointUploads
from periflow_ray.runtime.monitor import membership
from periflow_ray.runtime.monitor.client import MonitorClient
from periflow_ray.runtime.monitor.contract import GroupLoss, Report, SnapshotId
from periflow_ray.store.checkpoints import list_committed
from periflow_ray.store.root import StorageRoot

# The last step is not saved, so that its metric comes with the last report.
NUM_STEPS = 7
SAVED_STEPS = [2, 4, 6]
STEP_S = 0.03
# A rank that there is not: an order that has to be brought to the members, and changes nothing.
HARMLESS = KillRankDrill(99)
NUM_ORDERS = 3

When = Literal["before", "after"]
WHENS: tuple[When, ...] = ("before", "after")
Answer = TypeVar("Answer")


class FailingMonitor(WrappedMonitor):
    """Fails some calls of a member.

    Args:
        name: of the call; none fails if it is empty.
        numbers: which of these calls fail, counted from 1.
        when: before the call has arrived, or after.
        is_meant: looks at the arguments of such a call; others are not counted.
    """

    def __init__(
        self,
        monitor: MonitorClient,
        name: str = "",
        numbers: Sequence[int] = (1,),
        when: When = "before",
        is_meant: Callable[..., bool] = lambda *args: True,
    ) -> None:
        super().__init__(monitor)
        self.num_calls: Counter[str] = Counter()
        self.num_failed = 0
        self.num_orders = 0
        """Orders that the member has got."""
        self._name = name
        self._numbers = numbers
        self._when = when
        self._is_meant = is_meant
        self._lock = threading.Lock()

    def call(self, name: str, args: tuple[object, ...], call: Callable[[], Answer]) -> Answer:
        with self._lock:
            self.num_calls[name] += name != self._name or self._is_meant(*args)
            fails = name == self._name and self._is_meant(*args) and self.num_calls[name] in self._numbers
            self.num_failed += fails
        if fails and self._when == "before":
            raise RuntimeError("the call was lost")
        answer = call()
        if fails:
            raise RuntimeError("the answer was lost")
        if name == "next_orders":
            self.num_orders += len(answer)  # type: ignore[arg-type]
        return answer


class Job:
    """Two members whose ranks make the same steps, with a metric in each and a save at every other one."""

    def __init__(
        self,
        monitor: ObservedMonitor,
        root: StorageRoot,
        base_dir: Path,
        shell_type: type[TrainingShell],
        last_words: Callable[[Rank], None] = lambda rank: None,
    ) -> None:
        self._monitor = monitor
        self._root = root
        self._base_dir = base_dir
        self._shell_type = shell_type
        self._last_words = last_words
        self._lockstep = Lockstep(2)
        self._may_train = threading.Event()

    async def run(self, clients: Sequence[FailingMonitor]) -> list[Outcome | BaseException]:
        """Each member's outcome, or what it raised."""
        members = [asyncio.create_task(in_thread(self._member(rank, clients[rank]))) for rank in range(2)]
        for number in range(1, NUM_ORDERS + 1):
            # One at a time, so that both ask for orders as often.
            await wait_for(lambda: all(client.num_calls["next_orders"] >= 1 for client in clients))
            await self._monitor.drill(HARMLESS)
            await wait_for(lambda number=number: all(client.num_orders == number for client in clients))
        self._may_train.set()
        return await asyncio.gather(*members, return_exceptions=True)

    def _member(self, rank: int, client: MonitorClient) -> Callable[[], Outcome]:
        shell = self._shell_type(self._base_dir / f"member-{rank}", rank, self._train, Pace())
        return lambda: run_member(client, self._root, facts_of(rank, 2), shell)

    def _train(self, rank: Rank) -> None:
        self._may_train.wait()
        with rank.open_session(NUM_STEPS) as session:
            for step in range(rank.resumed_step + 1, NUM_STEPS + 1):
                with session.train_step():
                    rank.is_ended.wait(STEP_S)
                    self._lockstep.finish(step, rank.is_ended)
                    rank.require_alive()
                    session.metric({"loss": step / 10})
                if step in SAVED_STEPS:
                    (rank.output_dir / f"rank-{rank.rank}.txt").write_text(str(step))
                    session.upload_checkpoint()
        self._last_words(rank)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(insistent, "RETRY_INTERVAL_S", 0.01)
    monkeypatch.setattr(orders, "RETRY_INTERVAL_S", 0.01)


def read_stored_metrics(root: StorageRoot) -> list[tuple[int, int, object]]:
    return sorted((metric.rank, metric.step, metric.values["loss"]) for metric in read_metrics(root, 1, rank=None))


def metrics_from(step: int) -> list[tuple[int, int, object]]:
    return [(rank, number, number / 10) for rank in range(2) for number in range(step, NUM_STEPS + 1)]


def committed_steps(root: StorageRoot) -> list[tuple[int, set[int]]]:
    """Of each checkpoint its step, and whose files it has."""
    return [(manifest.step, {file.node_rank for file in manifest.files}) for manifest in list_committed(root, 1)]


def is_of_step(step: int) -> Callable[..., bool]:
    """Whether ``begin_checkpoint`` or ``end_checkpoint`` is about the checkpoint of this step."""
    return lambda attempt, node_rank, snapshot, described: snapshot[0] == step


def failed_texts(root: StorageRoot) -> list[str]:
    return [text for kind, text in event_texts(root) if kind == "checkpoint_failed"]


def describe_lost(step: int) -> str:
    return f"checkpoint at step {step} was not saved: node 1: RuntimeError: the call was lost"


CALLS: dict[type[TrainingShell], list[str]] = {
    TrainingShell: [
        *("join", "start", "report", "next_orders", "announce_snapshot", "begin_checkpoint", "end_checkpoint"),
        *("leave", "decide"),
    ],
    FunctionLikeShell: ["wait_for_start", "barrier", "announce_snapshot", "end_checkpoint", "leave", "decide"],
}
# Which times of a call are the first, the second and the last one; where it is not here, there is only one.
TIMES = {
    **{name: [1, 2, len(SAVED_STEPS)] for name in ("announce_snapshot", "begin_checkpoint", "end_checkpoint")},
    "barrier": [1, 2, 2 * len(SAVED_STEPS)],
    "next_orders": [1, 2, NUM_ORDERS + 1],
    # Another test has the last.
    "report": [1, 2],
}
CASES = [
    (shell_type, name, number, when)
    for shell_type, names in CALLS.items()
    for name in names
    for number in TIMES.get(name, [1])
    for when in WHENS
]


@pytest.mark.parametrize(("shell_type", "name", "number", "when"), CASES)
def test_an_error_at_any_call_costs_nothing(run_monitor, root, tmp_path, shell_type, name, number, when):
    async def scenario(monitor: ObservedMonitor) -> None:
        failing = FailingMonitor(monitor.client, name, [number], when)
        outcomes = await Job(monitor, root, tmp_path, shell_type).run([FailingMonitor(monitor.client), failing])
        assert outcomes == [Outcome("end")] * 2
        assert failing.num_failed == 1, failing.num_calls
        assert not monitor.has_unsettled_checkpoints()

    run_monitor(scenario)
    assert committed_steps(root) == [(step, {0, 1}) for step in SAVED_STEPS]
    assert read_stored_metrics(root) == metrics_from(1)


@pytest.mark.parametrize("when", WHENS)
def test_an_error_at_the_last_report_costs_nothing(run_monitor, root, tmp_path, when):
    def is_last(report: Report) -> bool:
        return any(metric.step == NUM_STEPS for metric in report.metrics)

    async def scenario(monitor: ObservedMonitor) -> None:
        clients = [FailingMonitor(monitor.client, "report", [1], when, is_last) for _ in range(2)]
        assert await Job(monitor, root, tmp_path, TrainingShell).run(clients) == [Outcome("end")] * 2
        assert [client.num_failed for client in clients] == [1, 1]

    run_monitor(scenario)
    assert read_stored_metrics(root) == metrics_from(1)


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("shell_type", [TrainingShell, FunctionLikeShell])
def test_an_error_while_restoring_costs_nothing(run_monitor, nodes, root, tmp_path, shell_type, when):
    async def scenario(monitor: ObservedMonitor) -> None:
        before = nodes(monitor)
        await join_all(before, "group-0")
        await save_all(before, (2, 1))
        for node in before:
            await node.leave(failure_of(node.node_rank))
        failing = FailingMonitor(monitor.client, "settle_restore", [1], when)
        outcomes = await Job(monitor, root, tmp_path, shell_type).run([FailingMonitor(monitor.client), failing])
        assert [(outcome.following, outcome.failure, outcome.restored.step) for outcome in outcomes] == [
            ("end", None, 2)
        ] * 2
        assert failing.num_failed == 1

    run_monitor(scenario)
    assert committed_steps(root) == [(step, {0, 1}) for step in SAVED_STEPS]
    assert read_stored_metrics(root) == metrics_from(3)


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("name", ["miss_save", "has_committed", "next_orders", "end_checkpoint"])
def test_an_error_during_an_announced_save_costs_nothing(run_monitor, root, tmp_path, monkeypatch, name, when):
    """Of a rank that hears of the first announcement when it is beyond the step."""
    num_heard = 0

    def hear_late() -> float:
        nonlocal num_heard
        num_heard += 1
        while num_heard == 1 and trained[1].last_step <= (trained[0].emergency_steps or [10**9])[0]:
            trained_on.wait(0.001)
        return 0.0

    trained_on = threading.Event()
    trained: list[TrainingNode] = []

    async def scenario(monitor: ObservedMonitor) -> None:
        failing = FailingMonitor(monitor.client, name, [1], when)
        paces = [Pace(), Pace(announcement_s=hear_late)]
        clients = [monitor.client, failing]
        trained.extend(TrainingNode(monitor, root, tmp_path, n, 2, paces[n], client=clients[n]) for n in range(2))
        training = asyncio.create_task(train_all(trained))
        await wait_for_steps(trained)
        await wait_for(monitor.knows_speed)
        await monitor.drill(NoticeDrill(1, 3600.0))
        assert [outcome.following for outcome in await training] == ["new_group"] * 2
        assert failing.num_failed == 1
        assert not monitor.has_unsettled_checkpoints()

    run_monitor(scenario)
    (record,) = read_attempts(root, 1)
    assert record.save is not None
    assert record.cause == "preemption"
    assert record.save.step == record.resumable_step == record.last_step


@pytest.mark.parametrize("when", WHENS)
def test_an_error_at_a_withdrawal_leaves_nobody_waiting(run_monitor, nodes, root, tmp_path, when):
    def save_thrice(node: Node, client: MonitorClient, transfer: HeldTransfer) -> str | None:
        snapshots_dir = tmp_path / "snapshots"
        with CheckpointUploads(root, 1, 1, client, 1, snapshots_dir, transfer) as uploads:
            uploads.save(node.output_dir, (10, 1), Report(1, 1, 101, {}))
            transfer.is_held.wait()
            uploads.save(node.output_dir, (20, 1), Report(1, 1, 102, {}))
            uploads.save(node.output_dir, (30, 1), Report(1, 1, 103, {}), replace_waiting=True)
            transfer.let_go()
            return uploads.finish()

    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        failing = FailingMonitor(monitor.client, "withdraw_snapshot", [1], when)
        client, held = InsistentMonitor(failing), HeldTransfer(root)
        saving = asyncio.create_task(in_thread(lambda: save_thrice(second, client, held)))
        assert [await first.save((step, 1)) for step in (10, 20, 30)] == [
            None,
            "replaced by that of step 30 before its upload",
            None,
        ]
        assert await saving is None
        assert failing.num_failed == 1
        assert not monitor.has_unsettled_checkpoints()

    run_monitor(scenario)
    assert committed_steps(root) == [(10, {0, 1}), (30, {0, 1})]


# What no insisting helps against.


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("name", ["report", "next_orders"])
def test_a_loop_goes_on_after_an_error_that_does_not_pass(run_monitor, root, tmp_path, name, when):
    async def scenario(monitor: ObservedMonitor) -> None:
        failing = FailingMonitor(monitor.client, name, range(1, NUM_TRIES + 2), when)
        outcomes = await Job(monitor, root, tmp_path, TrainingShell).run([FailingMonitor(monitor.client), failing])
        assert outcomes == [Outcome("end")] * 2
        assert failing.num_failed == NUM_TRIES + 1

    run_monitor(scenario)
    assert read_stored_metrics(root) == metrics_from(1)


@pytest.mark.parametrize("when", WHENS)
def test_a_checkpoint_that_the_monitor_will_not_begin_is_given_up_and_the_next_is_saved(
    run_monitor, root, tmp_path, when
):
    async def scenario(monitor: ObservedMonitor) -> None:
        failing = FailingMonitor(monitor.client, "begin_checkpoint", range(1, NUM_TRIES + 1), when)
        outcomes = await Job(monitor, root, tmp_path, TrainingShell).run([FailingMonitor(monitor.client), failing])
        assert outcomes == [Outcome("end")] * 2
        assert not monitor.has_unsettled_checkpoints()

    run_monitor(scenario)
    assert committed_steps(root) == [(step, {0, 1}) for step in SAVED_STEPS[1:]]
    lost = "the call was lost" if when == "before" else "the answer was lost"
    reason = f"checkpoint at step {SAVED_STEPS[0]} was not saved: node 1: RuntimeError: {lost}"
    assert ("checkpoint_failed", reason) in event_texts(root)


@pytest.mark.parametrize("shell_type", [TrainingShell, FunctionLikeShell])
@pytest.mark.parametrize("num_failing", [NUM_TRIES, 10**6], ids=["three times", "for good"])
def test_a_checkpoint_whose_end_one_node_cannot_tell_is_given_up_by_all_and_the_next_is_saved(
    run_monitor, root, tmp_path, monkeypatch, shell_type, num_failing
):
    # The word of it does not wait for the next report.
    monkeypatch.setattr(membership, "REPORT_INTERVAL_S", 3600.0)

    async def scenario(monitor: ObservedMonitor) -> None:
        failing = FailingMonitor(
            monitor.client, "end_checkpoint", range(1, num_failing + 1), is_meant=is_of_step(SAVED_STEPS[0])
        )
        outcomes = await Job(monitor, root, tmp_path, shell_type).run([FailingMonitor(monitor.client), failing])
        assert outcomes == [Outcome("end")] * 2
        assert failing.num_failed == NUM_TRIES
        assert not monitor.has_unsettled_checkpoints()

    run_monitor(scenario)
    assert committed_steps(root) == [(step, {0, 1}) for step in SAVED_STEPS[1:]]
    assert failed_texts(root) == [describe_lost(SAVED_STEPS[0])]


def test_a_checkpoint_that_one_node_can_neither_begin_nor_end_is_given_up_by_all(run_monitor, root, tmp_path):
    async def scenario(monitor: ObservedMonitor) -> None:
        ending = FailingMonitor(
            monitor.client, "end_checkpoint", range(1, NUM_TRIES + 1), is_meant=is_of_step(SAVED_STEPS[1])
        )
        failing = FailingMonitor(
            ending, "begin_checkpoint", range(1, NUM_TRIES + 1), is_meant=is_of_step(SAVED_STEPS[1])
        )
        outcomes = await Job(monitor, root, tmp_path, TrainingShell).run([FailingMonitor(monitor.client), failing])
        assert outcomes == [Outcome("end")] * 2
        assert (failing.num_failed, ending.num_failed) == (NUM_TRIES, NUM_TRIES)
        assert not monitor.has_unsettled_checkpoints()

    run_monitor(scenario)
    assert committed_steps(root) == [(step, {0, 1}) for step in (SAVED_STEPS[0], SAVED_STEPS[2])]
    assert failed_texts(root) == [describe_lost(SAVED_STEPS[1])]


@pytest.mark.parametrize("saved_step", SAVED_STEPS)
def test_a_checkpoint_that_is_committed_is_no_failure_though_one_node_heard_no_answer(
    run_monitor, root, tmp_path, saved_step
):
    async def scenario(monitor: ObservedMonitor) -> None:
        failing = FailingMonitor(
            monitor.client, "end_checkpoint", range(1, NUM_TRIES + 1), "after", is_of_step(saved_step)
        )
        outcomes = await Job(monitor, root, tmp_path, TrainingShell).run([FailingMonitor(monitor.client), failing])
        # The last one, too: a member says why the last checkpoint of its script was not saved.
        assert outcomes == [Outcome("end")] * 2
        assert failing.num_failed == NUM_TRIES

    run_monitor(scenario)
    assert committed_steps(root) == [(step, {0, 1}) for step in SAVED_STEPS]
    assert failed_texts(root) == []


def test_a_last_checkpoint_that_one_node_gave_up_is_a_failure_of_the_attempt_and_made_again(
    run_monitor, root, tmp_path
):
    async def scenario(monitor: ObservedMonitor) -> None:
        failing = FailingMonitor(
            monitor.client, "end_checkpoint", range(1, NUM_TRIES + 1), is_meant=is_of_step(SAVED_STEPS[-1])
        )
        outcomes = await Job(monitor, root, tmp_path, TrainingShell).run([FailingMonitor(monitor.client), failing])
        assert [(outcome.following, outcome.failure) for outcome in outcomes] == [("end", None)] * 2

    run_monitor(scenario)
    failed, ended = read_attempts(root, 1)
    assert (failed.cause, ended.cause) == ("failure", None)
    assert "the last checkpoint could not be saved: node 1: RuntimeError: the call was lost" in failed.text
    assert committed_steps(root) == [(step, {0, 1}) for step in SAVED_STEPS]


def test_after_an_agreed_save_that_one_node_gave_up_another_one_is_committed(run_monitor, root, tmp_path):
    agreed_steps: list[int] = []

    def is_agreed(attempt: int, node_rank: int, snapshot: SnapshotId, error: str | None) -> bool:
        if not agreed_steps and trained[1].emergency_steps:
            agreed_steps.append(trained[1].emergency_steps[0])
        return snapshot[0] in agreed_steps

    trained: list[TrainingNode] = []

    async def scenario(monitor: ObservedMonitor) -> None:
        failing = FailingMonitor(monitor.client, "end_checkpoint", range(1, 10**6), is_meant=is_agreed)
        lockstep = Lockstep(2)
        trained.extend(
            TrainingNode(monitor, root, tmp_path, n, 2, Pace(), lockstep, save_every=200, client=client)
            for n, client in enumerate([monitor.client, failing])
        )
        training = asyncio.create_task(train_all(trained))
        await wait_for_steps(trained)
        await wait_for(monitor.knows_speed)
        await monitor.drill(NoticeDrill(1, 3600.0))
        assert [outcome.following for outcome in await training] == ["new_group"] * 2
        assert failing.num_failed == NUM_TRIES

    run_monitor(scenario)
    (record,) = read_attempts(root, 1)
    assert record.save is not None
    assert record.save.step == record.resumable_step > agreed_steps[0]
    assert failed_texts(root) == [describe_lost(agreed_steps[0])]


@pytest.mark.parametrize("when", WHENS)
def test_a_snapshot_that_cannot_be_withdrawn_is_given_up_and_nobody_waits_for_it(
    run_monitor, nodes, root, tmp_path, when
):
    def save_thrice(node: Node, client: MonitorClient, transfer: HeldTransfer) -> str | None:
        reporter = Reporter(client, 1, 1, 3600.0, lambda: Records({}))
        uploads = CheckpointUploads(root, 1, 1, client, 1, tmp_path / "snapshots", transfer, reporter.give_up)
        with uploads:
            uploads.save(node.output_dir, (10, 1), Report(1, 1, 101, {}))
            transfer.is_held.wait()
            uploads.save(node.output_dir, (20, 1), Report(1, 1, 102, {}))
            uploads.save(node.output_dir, (30, 1), Report(1, 1, 103, {}), replace_waiting=True)
            transfer.let_go()
            return uploads.finish()

    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        failing = FailingMonitor(monitor.client, "withdraw_snapshot", range(1, 10**6), when)
        client, held = InsistentMonitor(failing), HeldTransfer(root)
        saving = asyncio.create_task(in_thread(lambda: save_thrice(second, client, held)))
        reason = "replaced by that of step 30 before its upload"
        assert [await first.save((step, 1)) for step in (10, 20, 30)] == [None, reason, None]
        assert await saving is None
        assert failing.num_failed == NUM_TRIES
        assert not monitor.has_unsettled_checkpoints()

    run_monitor(scenario)
    assert committed_steps(root) == [(10, {0, 1}), (30, {0, 1})]


@pytest.mark.parametrize("when", WHENS)
def test_a_save_that_cannot_be_announced_fails_in_the_script_and_the_job_goes_on(run_monitor, root, tmp_path, when):
    async def scenario(monitor: ObservedMonitor) -> None:
        failing = FailingMonitor(monitor.client, "announce_snapshot", range(2, NUM_TRIES + 2), when)
        outcomes = await Job(monitor, root, tmp_path, TrainingShell).run([FailingMonitor(monitor.client), failing])
        assert [(outcome.following, outcome.failure) for outcome in outcomes] == [("end", None)] * 2
        assert not monitor.has_unsettled_checkpoints()

    run_monitor(scenario)
    failed, ended = read_attempts(root, 1)
    assert (failed.cause, ended.cause) == ("failure", None)
    assert f"PeriFlowError: the checkpoint of step {SAVED_STEPS[1]} could not be saved: RuntimeError" in failed.text
    assert [step for step, _ in committed_steps(root)] == SAVED_STEPS


@pytest.mark.parametrize("when", WHENS)
def test_a_failure_is_told_though_uploads_cannot_be_waited_for(run_monitor, root, tmp_path, when):
    def fail(rank: Rank) -> None:
        if rank.rank == 1:
            raise ValueError("the loss is nan")

    async def scenario(monitor: ObservedMonitor) -> None:
        failing = FailingMonitor(monitor.client, "settle_uploads", range(1, NUM_TRIES + 1), when)
        job = Job(monitor, root, tmp_path, FunctionLikeShell, last_words=fail)
        _, outcome = await job.run([FailingMonitor(monitor.client), failing])
        assert isinstance(outcome, Outcome)
        assert failing.num_failed == NUM_TRIES
        (failure,) = (await monitor.describe_end()).failures
        assert failure == outcome.failure
        assert failure.summary == "ValueError: the loss is nan"

    run_monitor(scenario)


@pytest.mark.parametrize("when", WHENS)
def test_a_member_that_cannot_leave_ends_and_the_others_hear_it_from_the_controller(run_monitor, root, tmp_path, when):
    async def scenario(monitor: ObservedMonitor) -> None:
        failing = FailingMonitor(monitor.client, "leave", range(1, NUM_TRIES + 1), when)
        running = asyncio.create_task(
            Job(monitor, root, tmp_path, TrainingShell).run([FailingMonitor(monitor.client), failing])
        )
        await wait_for(lambda: failing.num_failed == NUM_TRIES)
        # As Ray Train's controller does when it sees the error.
        may_replace = await monitor.may_replace_group(GroupLoss(1, {}))
        outcome, error = await running
        assert isinstance(error, RuntimeError)
        assert isinstance(outcome, Outcome)
        # One whose word arrived has left, and the job has come to its end.
        assert may_replace == (when == "before")
        assert outcome.following == ("new_group" if when == "before" else "end")

    run_monitor(scenario)
    assert committed_steps(root) == [(step, {0, 1}) for step in SAVED_STEPS]
