"""A node that cannot tell what became of its part of a checkpoint: the others go on, and nothing else is harmed."""

from __future__ import annotations

import asyncio
import dataclasses

from announced_saves import Orders, notice
from simulated_cluster import HOLD_TIMEOUT_S
from simulated_nodes import (
    HeldTransfer,
    Node,
    ObservedMonitor,
    event_texts,
    failure_of,
    in_thread,
    join_all,
    join_ranks_of_one_node,
    report_of,
    save_all,
    wait_for,
)

from periflow_ray.runtime.member.reporter import Reporter
from periflow_ray.runtime.member.shell import Records
from periflow_ray.runtime.monitor.contract import Assignment, GivenUpSnapshot, SnapshotId
from periflow_ray.sdk.session import SAVE_NOW
from periflow_ray.store.checkpoints import describe_tree, list_committed
from periflow_ray.store.root import StorageRoot

WHY = "node 1: RuntimeError: the call was lost"


async def give_up(monitor: ObservedMonitor, node_rank: int, snapshot: SnapshotId, number: int = 101) -> None:
    """Say so with the node's report of this number."""
    report = report_of(node_rank, number, {})
    await monitor.report(dataclasses.replace(report, given_up=(GivenUpSnapshot(snapshot, WHY),)))


async def describe(node: Node, snapshot: SnapshotId) -> asyncio.Task[Assignment]:
    """Begin the node's part, which nobody ends."""
    files = describe_tree(node.output_dir)
    beginning = asyncio.create_task(node.monitor.begin_checkpoint(1, node.node_rank, snapshot, files))
    await wait_for(lambda: (node.node_rank, snapshot) in node.monitor.described)
    return beginning


def failed_texts(root: StorageRoot) -> list[str]:
    return [text for kind, text in event_texts(root) if kind == "checkpoint_failed"]


def committed_steps(root: StorageRoot) -> list[int]:
    return [manifest.step for manifest in list_committed(root, 1)]


def test_a_node_that_waits_for_the_commit_hears_that_another_one_gave_up(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await describe(second, (10, 1))
        saving = asyncio.create_task(first.save((10, 1)))
        await give_up(monitor, 1, (10, 1))
        assert await saving == WHY
        assert not monitor.has_unsettled_checkpoints()
        assert await save_all([first, second], (20, 1)) == [None, None]

    run_monitor(scenario)
    assert committed_steps(root) == [20]
    assert failed_texts(root) == [f"checkpoint at step 10 was not saved: {WHY}"]


def test_a_node_that_waits_for_the_files_of_one_that_gave_up_is_told_to_bring_none(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await second.announce((10, 1))
        saving = await first.begin_save((10, 1))
        await give_up(monitor, 1, (10, 1))
        assert await saving == WHY

    run_monitor(scenario)
    assert failed_texts(root) == [f"checkpoint at step 10 was not saved: {WHY}"]


def test_a_node_that_comes_to_a_snapshot_after_another_one_gave_it_up_does_not_wait(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        # Not even its announcement arrived.
        await give_up(monitor, 1, (10, 1))
        assert await first.save((10, 1)) == WHY

    run_monitor(scenario)
    assert failed_texts(root) == [f"checkpoint at step 10 was not saved: {WHY}"]


def test_a_late_call_for_a_snapshot_that_was_given_up_is_answered_and_changes_nothing(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await give_up(monitor, 1, (10, 1))
        assert await first.save((10, 1)) == WHY
        await second.announce((10, 1))
        assert await (await describe(second, (10, 1))) == Assignment("", ())
        assert await monitor.end_checkpoint(1, 1, (10, 1), None) == WHY
        # The same report once more, and the word of it in another one.
        await give_up(monitor, 1, (10, 1))
        await give_up(monitor, 1, (10, 1), number=102)
        assert not monitor.has_unsettled_checkpoints()

    run_monitor(scenario)
    assert committed_steps(root) == []
    assert failed_texts(root) == [f"checkpoint at step 10 was not saved: {WHY}"]


def test_the_snapshot_after_one_that_was_given_up_is_committed(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await describe(second, (10, 1))
        await second.announce((20, 1))
        saving = [asyncio.create_task(first.save((step, 1))) for step in (10, 20)]
        await wait_for(lambda: (0, (20, 1)) in monitor.described)
        await give_up(monitor, 1, (10, 1))
        assert await second.save((20, 1)) is None
        assert await asyncio.gather(*saving) == [WHY, None]

    run_monitor(scenario)
    assert committed_steps(root) == [20]


def test_a_checkpoint_that_is_committed_stays_so_though_a_node_lost_all_answers(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        assert await save_all(pair, (10, 1)) == [None, None]
        await give_up(monitor, 1, (10, 1))
        assert await monitor.has_committed((10, 1))

    run_monitor(scenario)
    assert committed_steps(root) == [10]
    assert failed_texts(root) == []


def test_a_commit_under_way_is_waited_for_by_the_node_that_lost_all_answers(run_monitor, nodes, slow_root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        slow_root.hold("manifest.json")
        saving = asyncio.create_task(save_all(pair, (10, 1)))
        await in_thread(lambda: slow_root.is_held.wait(HOLD_TIMEOUT_S))
        await give_up(monitor, 1, (10, 1))
        asking = asyncio.create_task(monitor.has_committed((10, 1)))
        await asyncio.sleep(0)
        assert not asking.done()
        slow_root.let_go()
        assert await asking
        assert await saving == [None, None]

    run_monitor(scenario, root=slow_root)
    assert failed_texts(slow_root) == []


def test_an_agreed_save_that_is_given_up_before_all_nodes_came_is_void_for_those_that_come(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        for node in (first, second):
            await node.record(1)
        orders, leaving = Orders(monitor), notice(monitor)
        assert await orders.next_save([first, second], 1) == SAVE_NOW
        await second.announce((1, 1))
        await give_up(monitor, 1, (1, 1))
        await second.record(9)
        # Its "at once" is another step; as a checkpoint of the usual kind it would lack the other node's files.
        assert await first.save((2, 1)) == WHY
        assert await orders.next_save([first, second], 9) == SAVE_NOW
        assert await save_all([first, second], (10, 1)) == [None, None]
        await leaving

    run_monitor(scenario)
    assert committed_steps(root) == [10]


def test_a_node_gives_up_nothing_of_a_later_attempt(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        await join_all(pair, "group-2")
        # Its machine was cut off during the attempt before.
        await give_up(monitor, 1, (10, 1))
        assert await save_all(pair, (10, 1)) == [None, None]

    run_monitor(scenario)
    assert committed_steps(root) == [10]


def test_a_node_that_leaves_has_given_up_what_it_did_not_bring(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await describe(second, (10, 1))
        saving = asyncio.create_task(first.save((10, 1)))
        await wait_for(lambda: (0, (10, 1)) in monitor.described)
        # No report of it arrived either.
        await second.leave(failure_of(1))
        assert await saving == "node 1 left before its files were uploaded"

    run_monitor(scenario)
    assert committed_steps(root) == []


def test_a_rank_that_leaves_gives_up_nothing_that_its_node_still_uploads(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        await join_ranks_of_one_node(monitor)
        held = HeldTransfer(root)
        saving = await nodes(monitor, 1)[0].begin_save((10, 1), held)
        await monitor.leave(1, 1, None)
        held.let_go()
        assert await saving is None

    run_monitor(scenario)
    assert committed_steps(root) == [10]


def test_a_reporter_tells_what_is_given_up_at_once_and_again_until_it_arrives(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        # Its loop does not run: only what is told at once arrives.
        reporter = Reporter(monitor.client, 1, 1, 3600.0, lambda: Records({}))
        await in_thread(lambda: reporter.give_up((10, 1), WHY))
        assert await first.save((10, 1)) == WHY

    run_monitor(scenario)
