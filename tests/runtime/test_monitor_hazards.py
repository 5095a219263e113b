"""Machines that Ray drains, ranks that stand still, and members that never come, as the monitor sees them."""

from __future__ import annotations

import asyncio

from simulated_cluster import FakeCluster
from simulated_nodes import (
    ObservedMonitor,
    event_texts,
    facts_of,
    failure_of,
    join_all,
    leave_all,
    record_all,
    report_of,
    save_all,
)
from simulated_ranks import Pace, TrainingNode, train_all, wait_for_steps

from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.jobs.requests import KillNodeDrill, KillRankDrill, NoticeDrill
from periflow_ray.runtime.monitor.contract import DumpStacks, EndAttempt, GroupLoss, Rehearse
from periflow_ray.store.checkpoints import list_committed


async def wait_for_looks(cluster: FakeCluster, num_looks: int) -> None:
    """Until the monitor has looked at the cluster this many times more."""
    wanted = cluster.num_looks + num_looks
    while cluster.num_looks < wanted:
        await asyncio.sleep(0.01)


def test_a_draining_machine_is_left_after_a_save_and_may_go(run_monitor, root, tmp_path, cluster):
    async def scenario(monitor: ObservedMonitor) -> None:
        trained = [TrainingNode(monitor, root, tmp_path, rank, 2, Pace()) for rank in range(2)]
        training = asyncio.create_task(train_all(trained))
        await wait_for_steps(trained)
        cluster.drain("ray-node-1", "a machine of another job")
        await training
        assert await monitor.decide(1) == "new_group"
        while b"saved:ray-node-1" not in cluster.keys:
            await asyncio.sleep(0.01)
        # Only this job's machine, and it is not held any more.
        assert cluster.keys == {b"saved:ray-node-1"}

    run_monitor(scenario)
    (attempt,) = read_attempts(root, 1)
    assert attempt.save is not None
    assert (attempt.cause, attempt.text) == ("preemption", "node 1 was taken away in 3600 s")
    assert attempt.last_step == attempt.save.step == attempt.resumable_step


def test_a_machine_is_held_while_the_save_is_not_committed(run_monitor, nodes, cluster):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        cluster.drain("ray-node-0")
        while not cluster.keys:
            await asyncio.sleep(0.01)
        await wait_for_looks(cluster, 5)
        assert cluster.keys == {b"saving:ray-node-0:1"}

    run_monitor(scenario)


def test_two_machines_that_go_at_once_are_left_together(run_monitor, root, tmp_path, cluster):
    async def scenario(monitor: ObservedMonitor) -> None:
        trained = [TrainingNode(monitor, root, tmp_path, rank, 4, Pace()) for rank in range(4)]
        training = asyncio.create_task(train_all(trained))
        await wait_for_steps(trained)
        cluster.drain("ray-node-1", "ray-node-3")
        await training

    run_monitor(scenario, num_members=4)
    notices = [text for _, text in event_texts(root)]
    assert notices[0] in ("node 1, 3 is taken away in 3600 s", "node 1, 3 is taken away in 3599 s")
    assert len(list_committed(root, 1)) == 1


def test_a_second_machine_that_drains_during_the_save_joins_it(run_monitor, nodes, root, cluster):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        cluster.drain("ray-node-0")
        await wait_for_looks(cluster, 3)
        cluster.drain("ray-node-1")
        await wait_for_looks(cluster, 3)
        await record_all(pair, 1)
        # The speed is unknown: all save at once.
        while not any(text.startswith("all ranks are asked to save at once") for _, text in event_texts(root)):
            await asyncio.sleep(0.01)
        assert await save_all(pair, (1, 1)) == [None, None]
        while len(cluster.keys & {b"saved:ray-node-0", b"saved:ray-node-1"}) < 2:
            await asyncio.sleep(0.01)

    run_monitor(scenario)
    asked = [text for _, text in event_texts(root) if text.startswith("all ranks are asked")]
    assert len(asked) == 1


def test_a_draining_machine_without_a_member_concerns_nobody(run_monitor, nodes, root, cluster):
    async def scenario(monitor: ObservedMonitor) -> None:
        await join_all(nodes(monitor))
        cluster.drain("a machine of another job")
        await wait_for_looks(cluster, 5)

    run_monitor(scenario)
    assert event_texts(root) == []
    assert cluster.keys == set()


def test_a_loss_of_a_machine_that_was_known_to_go_is_a_preemption(run_monitor, nodes, root, cluster):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        cluster.drain("ray-node-1", notice_s=-1.0)
        await wait_for_looks(cluster, 3)
        assert await monitor.may_replace_group(GroupLoss(1, {1: "The actor died"}))
        await join_all(pair, "group-2")
        assert await monitor.may_replace_group(GroupLoss(2, {0: "The actor died"}))

    run_monitor(scenario)
    assert [attempt.cause for attempt in read_attempts(root, 1)] == ["preemption", "lost"]


def test_ranks_that_stand_still_are_a_hang_and_their_stacks_are_asked_for(run_monitor, nodes, root, cluster):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        await record_all(pair, 7)
        assert [type(order) for order in await monitor.next_orders(1, 0)] == [DumpStacks, EndAttempt]
        await leave_all(pair)
        assert await monitor.decide(1) == "restart"

    run_monitor(scenario, hang_timeout_s=0.1)
    (attempt,) = read_attempts(root, 1)
    assert (attempt.cause, attempt.text) == ("hang", "no rank made a step for 0 s after step 7")


def test_a_hang_before_the_first_step_is_one(run_monitor, nodes, cluster):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        # pf.init() was called, and then the ranks wait for each other for ever.
        await record_all(pair, 0)
        assert [type(order) for order in await monitor.next_orders(1, 0)] == [DumpStacks, EndAttempt]

    run_monitor(scenario, hang_timeout_s=0.1)


def test_what_happens_before_init_may_take_any_time(run_monitor, nodes, root, cluster):
    async def scenario(monitor: ObservedMonitor) -> None:
        await join_all(nodes(monitor))
        await monitor.report(report_of(0, 1, {}))
        await wait_for_looks(cluster, 5)

    run_monitor(scenario, hang_timeout_s=0.01)
    assert event_texts(root) == []


def test_ranks_that_wait_for_the_upload_of_their_last_save_do_not_hang(run_monitor, nodes, root, cluster):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        drilling = asyncio.create_task(monitor.drill(NoticeDrill(1, 3600.0)))
        for node in pair:
            await node.announce((1, 1))
            await node.record(1, is_pausing=True)
        await wait_for_looks(cluster, 50)
        assert await save_all(pair, (1, 1)) == [None, None]
        await drilling
        await asyncio.gather(*(node.leave() for node in pair))
        assert await monitor.decide(1) == "new_group"

    run_monitor(scenario, hang_timeout_s=0.02)


def test_a_drill_kills_the_rank_or_the_node_that_it_names(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        await join_all(nodes(monitor))
        await monitor.drill(KillRankDrill(3))
        await monitor.drill(KillNodeDrill(1))
        assert await monitor.next_orders(1, 0) == [Rehearse(KillRankDrill(3)), Rehearse(KillNodeDrill(1))]

    run_monitor(scenario)
    assert event_texts(root) == [("note", "drill: kills rank 3"), ("note", "drill: kills node 1")]


def test_a_drill_of_an_attempt_that_is_over_kills_nobody(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        await pair[0].leave(failure_of(0))
        await monitor.drill(KillNodeDrill(1))
        assert [type(order) for order in await monitor.next_orders(1, 0)] == [EndAttempt]

    run_monitor(scenario)


def test_a_stop_reaches_members_that_wait_for_others_to_join(run_monitor):
    async def scenario(monitor: ObservedMonitor) -> None:
        first = asyncio.create_task(monitor.join(("group-1", 0), facts_of(0, 2)))
        await asyncio.sleep(0)
        await monitor.stop(timeout_s=0)
        assert (await first).is_over
        assert (await monitor.join(("group-1", 0), facts_of(1, 2))).is_over
        # Nor is there a commit that anybody could report.
        assert await monitor.newest_commit() is None

    run_monitor(scenario)
