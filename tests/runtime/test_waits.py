"""Who is missing is said, and nobody waits for ever."""

from __future__ import annotations

import asyncio

import pytest
from simulated_cluster import FakeCluster
from simulated_nodes import (
    Node,
    ObservedMonitor,
    event_texts,
    failure_of,
    join_all,
    join_ranks_of_one_node,
    report_of,
    wait_for,
)

from periflow_ray.runtime.monitor import waits as waits_module
from periflow_ray.store.checkpoints import latest_committed
from periflow_ray.store.root import StorageRoot


@pytest.fixture(autouse=True)
def short_waits(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits_module, "SLOW_S", 0.05)


def has_said(root: StorageRoot, text: str) -> bool:
    return ("note", text) in event_texts(root)


async def start_all(monitor: ObservedMonitor, nodes: list[Node]) -> None:
    await join_all(nodes)
    for node in nodes:
        await monitor.start(1, node.node_rank)


def test_a_node_where_nobody_opens_a_session_holds_up_no_checkpoint(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await start_all(monitor, [first, second])
        for step in (5, 6, 7):
            await first.record(step)
            assert await first.save((step, 1)) is None
        told = [text for kind, text in event_texts(root) if "pf.init()" in text]
        assert told == [
            "node 1 has not called pf.init(), though others train: checkpoints do not wait for its files until it "
            "does. Call pf.init() on every rank."
        ]
        # A save of all nodes before a loss needs those that can save, too.
        first_save = asyncio.create_task(monitor.stop(20.0))
        await wait_for(lambda: monitor._context.attempt.orders)
        await first.record(8, is_answer=True)
        await wait_for(lambda: monitor._save._announced_step > 0 or monitor._save._announced_step == -1)
        await first.record(9)
        assert await first.save((9, 1)) is None
        await first_save
        committed = latest_committed(root, 1)
        assert committed is not None
        assert committed.step == 9

    run_monitor(scenario)


def test_a_node_that_opens_its_session_late_is_waited_for_from_then_on(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await start_all(monitor, [first, second])
        await first.record(5)
        assert await first.save((5, 1)) is None
        await second.record(4)
        saving = await first.begin_save((6, 1))
        await wait_for(lambda: has_said(root, "the checkpoint of step 6 waits for node 1 to save at this step"))
        assert not saving.done()
        assert await second.save((6, 1)) is None
        assert await saving is None

    run_monitor(scenario)


def test_a_node_that_still_prepares_may_save_later_and_is_named(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await monitor.start(1, 0)
        await first.record(5)
        saving = await first.begin_save((5, 1))
        text = "node 1 still prepares its workspace, dataset or checkpoint; node 0 has started and may wait for it"
        await wait_for(lambda: has_said(root, text))
        assert not saving.done()
        await monitor.start(1, 1)
        await second.record(5)
        assert await second.save((5, 1)) is None
        assert await saving is None

    run_monitor(scenario)


def test_a_rank_of_a_function_job_without_a_session_is_not_met(run_monitor, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        await join_ranks_of_one_node(monitor, 3)
        for rank in range(3):
            await monitor.start(1, rank)
        for rank in (0, 1):
            await monitor.report(report_of(rank, 1, {rank: 5}))
        await asyncio.gather(*(monitor.barrier(1, rank, (5, 1), "written") for rank in (0, 1)))
        await wait_for(lambda: any(text.startswith("rank 2 has not called pf.init()") for _, text in event_texts(root)))

    run_monitor(scenario, num_members=3)


def test_ranks_that_wait_for_another_one_are_named_with_it(run_monitor, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        await join_ranks_of_one_node(monitor, 3)
        for rank in range(3):
            await monitor.start(1, rank)
            await monitor.report(report_of(rank, 1, {rank: 5}))
        meeting = [asyncio.create_task(monitor.barrier(1, rank, (5, 1), "written")) for rank in (0, 2)]
        text = "rank 0, 2 waits for rank 1 in upload_checkpoint() at step 5. Every rank must call it."
        await wait_for(lambda: has_said(root, text))
        await monitor.barrier(1, 1, (5, 1), "written")
        await asyncio.gather(*meeting)

    run_monitor(scenario, num_members=3)


def test_members_that_have_not_come_and_a_storage_that_does_not_answer_are_named(run_monitor, nodes, slow_root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        slow_root.hold("attempts/1.json")
        joining = asyncio.create_task(first.join())
        text = "attempt 1 waits for the storage, which has not said yet which checkpoints the job has"
        await wait_for(lambda: has_said(slow_root, text))
        slow_root.let_go()
        await wait_for(lambda: has_said(slow_root, "attempt 1 waits for node 1: Ray has not started it yet"))
        await asyncio.gather(joining, second.join())

    run_monitor(scenario, root=slow_root)


def test_a_member_that_does_not_leave_is_named_and_after_all_given_up(run_monitor, nodes, root, monkeypatch):
    monkeypatch.setattr(waits_module, "LEAVE_TIMEOUT_S", 0.5)

    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await start_all(monitor, [first, second])
        await first.leave(failure_of(0))
        assert await monitor.decide(1) == "new_group"
        await wait_for(lambda: any(text.startswith("node 1 has not left attempt 1 ") for _, text in event_texts(root)))
        assert has_said(root, "attempt 1 has ended, and waits for node 1 to end its command and leave")
        # What it says when it comes to after all changes nothing.
        await second.leave()
        assert await monitor.decide(1) == "new_group"

    run_monitor(scenario)


def test_a_member_that_runs_on_after_others_have_ended_is_named(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await start_all(monitor, [first, second])
        await first.leave()
        deciding = asyncio.create_task(monitor.decide(1))
        await wait_for(lambda: has_said(root, "node 0 has come to its end; node 1 is still running"))
        await second.leave()
        assert await deciding == "end"

    run_monitor(scenario)


def test_a_node_that_never_starts_is_a_hang_of_those_that_wait_for_it(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        await join_all(nodes(monitor))
        await monitor.start(1, 0)
        await wait_for(lambda: monitor._context.attempt.cause == "hang")
        text = monitor._context.attempt.text
        assert text.startswith("node 1 was not prepared ")
        assert text.endswith(" s after others had started")

    run_monitor(scenario, hang_timeout_s=0.02)


def test_members_that_all_prepare_are_no_hang(run_monitor, nodes, cluster):
    async def scenario(monitor: ObservedMonitor) -> None:
        await join_all(nodes(monitor))
        num_looks = cluster.num_looks
        await wait_for(lambda: cluster.num_looks > num_looks + 10)
        assert monitor._context.attempt.cause is None

    run_monitor(scenario, hang_timeout_s=0.001)


def test_nodes_whose_processes_take_themselves_for_the_same_rank_are_told(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        await start_all(monitor, nodes(monitor))
        for node_rank in (0, 1):
            await monitor.report(report_of(node_rank, 1, {0: 5, 4 + node_rank: 5}))
        text = "processes on several nodes say that they are rank 0: "
        await wait_for(lambda: any(note.startswith(text) for _, note in event_texts(root)))

    run_monitor(scenario)


def test_the_total_that_rank_0_says_counts(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        await start_all(monitor, nodes(monitor))
        for member, number, rank, total in ((1, 1, 1, 10), (0, 1, 0, 40), (1, 2, 1, 10)):
            await monitor.report(report_of(member, number, {rank: 5}, total_train_steps=total))
        assert monitor._recorder.progress.total_train_steps == 40

    run_monitor(scenario)


def test_a_rank_that_misses_at_a_report_is_named(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        await start_all(monitor, nodes(monitor))
        waiting = asyncio.create_task(monitor.meet_at_report(1, 0, 1, False))
        text = "node 0 waits for node 1 in ray.train.report(). Every rank must call it, and as often as the others."
        await wait_for(lambda: has_said(root, text))
        await monitor.meet_at_report(1, 1, 1, False)
        assert not await waiting

    run_monitor(scenario)
