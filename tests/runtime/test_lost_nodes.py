"""A node that is gone, or that still speaks although the job goes on without it."""

from __future__ import annotations

import asyncio

from simulated_nodes import Node, failure_of, join_all, save_all

from periflow_ray.runtime.monitor import Monitor
from periflow_ray.store.checkpoints import describe_files, list_committed


async def begin_save(node: Node) -> asyncio.Task[str | None]:
    saving = asyncio.create_task(node.save((10, 1)))
    # Enough for it to come to where it waits for the others.
    for _ in range(10):
        await asyncio.sleep(0)
    return saving


def test_what_a_lost_node_says_after_the_next_attempt_began_is_not_heard(run_monitor, nodes, root):
    async def scenario(monitor: Monitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await monitor.may_replace_group({1: "its machine was lost"}, is_preempted=False)
        await join_all([first, second], "group-2")
        # From the first attempt: far ahead, with files of its own, and then broken.
        await monitor.record({2: 99, 3: 99}, None, [], 1, attempt_number=1)
        await monitor.announce_snapshot(1, (10, 1), 1)
        assert await monitor.begin_checkpoint(1, (10, 1), describe_files(second.snapshot_dir), 1) == ("", [])
        assert await monitor.end_checkpoint(1, (10, 1), None, 1) == "attempt 1 is over"
        await monitor.withdraw_snapshot((10, 1), "no room", 1)
        await monitor.leave(1, failure_of(1), 1)
        assert await monitor.attempt_failures() == []
        saving = await begin_save(first)
        assert not saving.done()
        assert await second.save((10, 1)) is None
        assert await saving is None

    run_monitor(scenario)
    (manifest,) = list_committed(root, 1)
    assert (manifest.attempt, {file.node_rank for file in manifest.files}) == (2, {0, 1})


def test_after_a_loss_the_new_nodes_save_as_ever(run_monitor, nodes, root):
    async def scenario(monitor: Monitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        await monitor.may_replace_group({1: "its machine was lost"}, is_preempted=False)
        await join_all(pair, "group-2")
        assert await save_all(pair, (10, 1)) == [None, None]

    run_monitor(scenario)
    assert [manifest.step for manifest in list_committed(root, 1)] == [10]
