"""What the monitor does where there is no step that all ranks can still reach: they are asked to save at once."""

from __future__ import annotations

import asyncio

import pytest
from announced_saves import Orders, join_and_train, notice
from simulated_nodes import ObservedMonitor, join_all, record_all, save_all

from periflow_ray.runtime.monitor import announced_save as announced_save_module
from periflow_ray.runtime.monitor import attempt as attempt_module
from periflow_ray.runtime.monitor.announced_save import MAX_TIMES_AT_ONCE
from periflow_ray.sdk.session import NO_STEP, SAVE_NOW
from periflow_ray.store.checkpoints import list_committed

pytestmark = pytest.mark.usefixtures("quick_speed")


def test_now_is_nothing_unless_it_is_the_same_step_everywhere(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        await record_all(pair, 1)
        orders, leaving = Orders(monitor), notice(monitor)
        assert await orders.next_save(pair, 1) == SAVE_NOW
        mixed = "nodes saved at different steps (1, 2)"
        assert await asyncio.gather(pair[0].save((1, 1)), pair[1].save((2, 1))) == [mixed, mixed]
        # Now that two steps were seen, there is a speed.
        step = await orders.next_save(pair, 2)
        assert step > 2
        assert await save_all(pair, (step, 1)) == [None, None]
        await leaving

    run_monitor(scenario)
    assert [manifest.num_nodes for manifest in list_committed(root, 1)] == [2]


def test_a_node_that_has_not_reported_yet_may_be_behind_all_others(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        await pair[0].record(20)
        orders, leaving = Orders(monitor), notice(monitor)
        assert await orders.next_save(pair[:1], 20) == SAVE_NOW
        # Node 0 is beyond that step, but it was asked to save as well: the files of one node are no checkpoint.
        late = "node 0 was beyond step 16 when it should have saved"
        assert [await pair[1].save((16, 1)), await pair[0].save((20, 1))] == [late, late]
        leaving.cancel()

    run_monitor(scenario)
    assert list_committed(root, 1) == []


def test_ranks_that_are_never_at_the_same_step_are_not_asked_for_ever(run_monitor, nodes, root, monkeypatch):
    # More than the notice has: there is no step that all can still reach.
    monkeypatch.setattr(announced_save_module, "ANNOUNCE_S", 100.0)

    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_and_train(pair)
        orders, leaving = Orders(monitor), notice(monitor, 50.0)
        for step in range(3, 3 + MAX_TIMES_AT_ONCE):
            assert await orders.next_save(pair, step) == SAVE_NOW
            await asyncio.gather(pair[0].save((step, 1)), pair[1].save((step + 10, 1)))
        # They train on as if nobody had asked.
        assert await orders.next_save(pair, step) == NO_STEP
        leaving.cancel()

    run_monitor(scenario)
    assert list_committed(root, 1) == []


def test_ranks_whose_speed_is_not_known_yet_are_asked_until_it_is(run_monitor, nodes, root, monkeypatch):
    monkeypatch.setattr(announced_save_module, "ANNOUNCE_S", 0.01)
    monkeypatch.setattr(attempt_module, "MIN_SPEED_SPAN_S", 0.5)

    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        await record_all(pair, 1)
        orders, leaving = Orders(monitor), notice(monitor)
        step = 1
        while (asked := await orders.next_save(pair, step)) == SAVE_NOW:
            await asyncio.gather(pair[0].save((step, 1)), pair[1].save((step + 1, 1)))
            step += 1
        assert step > MAX_TIMES_AT_ONCE
        assert asked > step
        assert await save_all(pair, (asked, 1)) == [None, None]
        await leaving

    run_monitor(scenario)
