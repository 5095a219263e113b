from __future__ import annotations

import asyncio

from simulated_nodes import join_all

from periflow_ray.runtime.monitor import Monitor
from periflow_ray.store.attempts import read_attempts
from periflow_ray.store.checkpoints import list_committed


def test_a_node_that_is_lost_leaves_no_half_checkpoint(run_monitor, nodes, root):
    async def scenario(monitor: Monitor) -> None:
        first, _ = nodes(monitor)
        await join_all(nodes(monitor))
        saving = asyncio.create_task(first.save((10, 1)))
        await asyncio.sleep(0)
        assert await monitor.may_replace_group({1: "The actor died"}, False)
        assert await saving == "node 1 failed before its files were copied"

    run_monitor(scenario)
    assert list_committed(root, 1) == []


def test_a_node_that_was_told_to_end_leaves_no_half_checkpoint(run_monitor, nodes, root):
    async def scenario(monitor: Monitor) -> None:
        three = nodes(monitor, 3)
        await join_all(three)
        saving = asyncio.create_task(three[0].save((10, 1)))
        await asyncio.sleep(0)
        await monitor.stop(0)
        await monitor.leave(1, None)
        assert await saving == "node 1 failed before its files were copied"

    run_monitor(scenario, num_members=3)
    assert list_committed(root, 1) == []


def test_those_who_live_on_in_a_broken_group_do_not_begin_another_attempt(run_monitor, nodes, root):
    async def scenario(monitor: Monitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        assert await monitor.may_replace_group({1: "The actor died"}, False)
        await monitor.leave(0, None)
        assert await monitor.decide() == "new_group"
        assert [meeting.attempt for meeting in await join_all([first, second], "group-2")] == [2, 2]

    run_monitor(scenario)
    assert [record.cause for record in read_attempts(root, 1)] == ["lost", None]
