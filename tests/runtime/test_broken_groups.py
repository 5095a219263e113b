"""What the monitor makes of a worker group that broke, as Ray Train's controller reports it."""

from __future__ import annotations

import asyncio

from simulated_nodes import (
    HeldTransfer,
    ObservedMonitor,
    event_texts,
    join_all,
    join_ranks_of_one_node,
    leave_all,
    save_all,
    wait_for,
)

from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.jobs.requests import NoticeDrill
from periflow_ray.runtime.monitor.contract import MEMORY_WAS_FULL, GroupLoss
from periflow_ray.store.checkpoints import latest_committed


def test_a_lost_node_makes_no_half_checkpoint(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        saving = await pair[0].begin_save((10, 1))
        # Node 1 dies before it has described its files.
        assert await monitor.may_replace_group(GroupLoss(1, {1: "died"}))
        assert await saving == "node 1 ended before its files were copied"

    run_monitor(scenario)
    assert latest_committed(root, 1) is None
    assert [(record.cause, record.text) for record in read_attempts(root, 1)] == [
        ("lost", "node 1 was lost: its agent or its machine died")
    ]


def test_a_node_that_ray_ended_for_want_of_memory_is_told_as_that(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        await join_all(nodes(monitor))
        assert await monitor.may_replace_group(GroupLoss(1, {1: MEMORY_WAS_FULL}))

    run_monitor(scenario)
    assert [(record.cause, record.text) for record in read_attempts(root, 1)] == [
        ("lost", f"node 1 was lost: {MEMORY_WAS_FULL}, where other programs count as well")
    ]


def test_what_living_nodes_upload_is_finished_before_the_group_is_replaced(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        await join_ranks_of_one_node(monitor)
        node = nodes(monitor)[0]
        await node.announce((10, 1))
        # Rank 1 dies; rank 0, which uploads for both, lives.
        replacing = asyncio.create_task(monitor.may_replace_group(GroupLoss(1, {1: "died"})))
        await asyncio.sleep(0.1)
        assert not replacing.done()
        assert await node.save((10, 1)) is None
        assert await replacing

    run_monitor(scenario)
    newest = latest_committed(root, 1)
    assert newest is not None
    assert newest.step == 10
    assert [record.resumable_step for record in read_attempts(root, 1)] == [10]


def test_an_upload_that_only_the_dead_could_finish_is_not_waited_for(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        saving = [await pair[0].begin_save((10, 1)), await pair[1].begin_save((10, 1), dead)]
        await wait_for(dead.is_held.is_set)
        assert await asyncio.wait_for(monitor.may_replace_group(GroupLoss(1, {1: "died"})), timeout=18)
        assert not any(task.done() for task in saving)

    dead = HeldTransfer(root)
    run_monitor(scenario)
    dead.let_go()
    assert latest_committed(root, 1) is None


def test_an_error_after_everything_is_done_is_not_tried_again(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        await save_all(pair, (10, 1))
        await leave_all(pair)
        assert await monitor.decide(1) == "end"
        assert not await monitor.may_replace_group(GroupLoss(1, {}))

    run_monitor(scenario)
    assert [(record.cause, record.ended_unix_s is not None) for record in read_attempts(root, 1)] == [(None, True)]


def test_a_group_that_broke_before_anybody_came_is_not_tried_again(run_monitor, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        assert not await monitor.may_replace_group(GroupLoss(1, {0: "died"}))

    run_monitor(scenario)
    assert read_attempts(root, 1) == []


def test_groups_that_break_before_an_attempt_begins_with_them_are_tried_a_few_times(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        for group in (1, 2):
            await join_all(nodes(monitor), f"group-{group}")
            losses = [GroupLoss(10 * group + number, {0: "died"}) for number in range(6)]
            assert [await monitor.may_replace_group(loss) for loss in losses] == [True] * 6
        assert not await monitor.may_replace_group(GroupLoss(99, {0: "died"}))
        ending = await monitor.describe_end()
        assert ending.why_over == "its workers died 6 times in a row before all of them had come"

    run_monitor(scenario)
    assert len(read_attempts(root, 1)) == 2


def test_an_error_that_no_member_told_of_is_a_loss_and_counts(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        await join_all(nodes(monitor))
        assert not await monitor.may_replace_group(GroupLoss(1, {}))

    run_monitor(scenario, max_failures=0)
    assert [record.cause for record in read_attempts(root, 1)] == ["lost"]
    assert event_texts(root) == [("attempt_failed", "attempt 1 ended: a worker lost its connection to the job")]


def test_a_member_that_left_before_it_died_was_not_lost(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        await pair[0].leave()
        assert await monitor.may_replace_group(GroupLoss(1, {0: "died", 1: "died"}))

    run_monitor(scenario)
    assert [record.text for record in read_attempts(root, 1)] == ["node 1 was lost: its agent or its machine died"]


def test_a_stop_has_members_that_leave_or_says_so(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        assert await monitor.stop(timeout_s=0)
        await leave_all(pair)
        assert not await monitor.stop(timeout_s=0)

    run_monitor(scenario)
    # Recorded at the end, also where nobody was left to ask what follows.
    assert [(record.cause, record.ended_unix_s is not None) for record in read_attempts(root, 1)] == [("stop", True)]


def test_a_drilled_notice_that_ran_out_is_a_preemption_like_a_real_one(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        await join_all(nodes(monitor))
        for node in nodes(monitor):
            await node.record(1)
        await monitor.drill(NoticeDrill(1, 0.0))
        # Preemptions are not limited, though this job may not fail.
        assert await monitor.may_replace_group(GroupLoss(1, {1: "died"}))

    run_monitor(scenario)
    assert [(record.cause, record.text) for record in read_attempts(root, 1)] == [
        ("preemption", "node 1 was taken away")
    ]
