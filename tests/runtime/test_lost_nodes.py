"""A node that is gone, or that still speaks although the job goes on without it."""

from __future__ import annotations

import asyncio

import pytest
from simulated_nodes import ObservedMonitor, event_texts, failure_of, join_all, report_of, save_all

from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.runtime.monitor.contract import Assignment, GroupLoss
from periflow_ray.store.checkpoints import describe_tree, latest_committed, list_checkpoint_names, list_committed

ENDED = "node 1 ended before its files were copied"


def test_what_a_lost_node_says_after_the_next_attempt_began_is_not_heard(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await monitor.may_replace_group(GroupLoss(1, {1: "its machine was lost"}))
        await join_all([first, second], "group-2")
        # From the first attempt: far ahead, with files of its own, and then broken.
        await monitor.report(report_of(1, 90, {2: 99, 3: 99}))
        await monitor.announce_snapshot(1, 1, (10, 1), report_of(1, 91, {2: 99, 3: 99}))
        assert await monitor.begin_checkpoint(1, 1, (10, 1), describe_tree(second.output_dir)) == Assignment("", ())
        assert await monitor.end_checkpoint(1, 1, (10, 1), None) == "attempt 1 is over"
        await monitor.withdraw_snapshot(1, (10, 1), "no room")
        await monitor.leave(1, 1, failure_of(1))
        assert (await monitor.describe_end()).failures == ()
        saving = await first.begin_save((10, 1))
        assert not saving.done()
        assert await second.save((10, 1)) is None
        assert await saving is None

    run_monitor(scenario)
    (manifest,) = list_committed(root, 1)
    assert (manifest.attempt, {file.node_rank for file in manifest.files}) == (2, {0, 1})


def test_after_a_loss_the_new_nodes_save_as_ever(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        await monitor.may_replace_group(GroupLoss(1, {1: "its machine was lost"}))
        await join_all(pair, "group-2")
        assert await save_all(pair, (10, 1)) == [None, None]

    run_monitor(scenario)
    assert [manifest.step for manifest in list_committed(root, 1)] == [10]


def test_those_who_live_on_in_a_broken_group_do_not_begin_another_attempt(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        assert await monitor.may_replace_group(GroupLoss(1, {1: "The actor died"}))
        await first.leave()
        assert await monitor.decide(1) == "new_group"
        assert [start.attempt for start in await join_all([first, second], "group-2")] == [2, 2]

    run_monitor(scenario)
    assert [record.cause for record in read_attempts(root, 1)] == ["lost", None]


@pytest.mark.parametrize("end", ["stop", "lost"])
def test_a_node_that_is_ended_before_it_saved_takes_the_others_save_with_it(run_monitor, nodes, root, end):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await first.record(50)
        await second.record(30)
        saving = asyncio.create_task(first.save((50, 1)))
        while not list_checkpoint_names(root, 1):
            await asyncio.sleep(0.01)
        if end == "stop":
            await monitor.stop(0)
            await second.leave()
        else:
            await monitor.may_replace_group(GroupLoss(1, {1: "died"}))
        assert await saving == ENDED

    run_monitor(scenario)
    assert latest_committed(root, 1) is None
    assert ("checkpoint_failed", f"checkpoint at step 50 was not saved: {ENDED}") in event_texts(root)
