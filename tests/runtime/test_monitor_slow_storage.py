"""What happens to a checkpoint while its commit is on the way to a slow storage."""

from __future__ import annotations

import asyncio

from simulated_cluster import HOLD_TIMEOUT_S, SlowRoot
from simulated_nodes import Node, ObservedMonitor, event_texts, failure_of, in_thread, join_all, save_all

from periflow_ray.runtime.monitor import checkpoints as monitor_checkpoints
from periflow_ray.store.checkpoints import list_committed


async def begin_slow_commit(slow_root: SlowRoot, nodes: list[Node]) -> asyncio.Task[list[str | None]]:
    slow_root.hold("manifest.json")
    saving = asyncio.create_task(save_all(nodes, (10, 1)))
    await in_thread(lambda: slow_root.is_held.wait(HOLD_TIMEOUT_S))
    return saving


def test_the_next_attempt_begins_with_what_the_one_before_was_committing(run_monitor, nodes, slow_root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        await begin_slow_commit(slow_root, pair)
        joining = asyncio.create_task(join_all(pair, "group-2"))
        await asyncio.sleep(0)
        slow_root.let_go()
        starts = await joining
        assert [start.checkpoint.step for start in starts] == [10, 10]

    run_monitor(scenario, root=slow_root)


def test_a_node_that_fails_during_the_commit_does_not_undo_it(run_monitor, nodes, slow_root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        saving = await begin_slow_commit(slow_root, pair)
        await pair[1].leave(failure_of(1))
        await monitor.withdraw_snapshot(1, (10, 1), "too late for that")
        slow_root.let_go()
        assert await saving == [None, None]

    run_monitor(scenario, root=slow_root)
    assert [manifest.step for manifest in list_committed(slow_root, 1)] == [10]
    assert "checkpoint_failed" not in [kind for kind, _ in event_texts(slow_root)]


def test_a_node_that_cannot_even_describe_its_files_fails_the_checkpoint_for_all(run_monitor, nodes, slow_root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await second.announce((10, 1))
        assert await monitor.end_checkpoint(1, 1, (10, 1), "node 1: [Errno 5] Input/output error") is not None
        assert await first.save((10, 1)) == "node 1: [Errno 5] Input/output error"
        assert await save_all([first, second], (20, 1)) == [None, None]

    run_monitor(scenario, root=slow_root)
    assert [manifest.step for manifest in list_committed(slow_root, 1)] == [20]


def test_a_checkpoint_of_which_not_even_the_failure_can_be_recorded_holds_nobody_up(
    run_monitor, nodes, root, monkeypatch
):
    def fail(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        with monkeypatch.context() as broken:
            for name in ("commit", "mark_failed"):
                broken.setattr(monitor_checkpoints.checkpoints, name, fail)
            assert await save_all(pair, (10, 1)) == ["RuntimeError: can't start new thread"] * 2
        starts = await join_all(pair, "group-2")
        assert [start.checkpoint for start in starts] == [None, None]
        assert await save_all(pair, (20, 1)) == [None, None]

    run_monitor(scenario)
