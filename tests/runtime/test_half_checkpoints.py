"""What only some nodes saved when an attempt ended is no checkpoint: the others would begin anew."""

from __future__ import annotations

import asyncio

import pytest
from simulated_nodes import event_texts, join_all

from periflow_ray.runtime.monitor import Monitor
from periflow_ray.store.checkpoints import latest_committed, list_checkpoint_names

ENDED = "node 1 ended before its files were copied"


@pytest.mark.parametrize("end", ["stop", "lost"])
def test_a_node_that_is_ended_before_it_saved_takes_the_others_save_with_it(run_monitor, nodes, root, end):
    async def scenario(monitor: Monitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await first.record(50)
        await second.record(30)
        saving = asyncio.create_task(first.save((50, 1)))
        while not list_checkpoint_names(root, 1):
            await asyncio.sleep(0.01)
        if end == "stop":
            await monitor.stop(0)
            await monitor.leave(1, None)
        else:
            await monitor.may_replace_group({1: "died"}, False)
        assert await saving == ENDED

    run_monitor(scenario)
    assert latest_committed(root, 1) is None
    assert ("checkpoint_failed", f"checkpoint at step 50 was not saved: {ENDED}") in event_texts(root)
