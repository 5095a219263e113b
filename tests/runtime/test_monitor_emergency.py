"""A save at an agreed step: what the monitor announces, what it takes for a checkpoint, and what it does not."""

from __future__ import annotations

import asyncio
import threading

import pytest
from announced_saves import Orders, join_and_train, notice
from simulated_nodes import (
    ObservedMonitor,
    event_texts,
    failure_of,
    join_all,
    leave_all,
    record_all,
    save_all,
)
from simulated_ranks import Pace, TrainingNode, train_all

from periflow_ray.jobs.attempts import AttemptRecord, read_attempts
from periflow_ray.runtime.monitor.contract import EndAttempt, Rehearse, ReportSteps, SaveAt
from periflow_ray.sdk.session import NO_STEP, SAVE_NOW
from periflow_ray.store.checkpoints import list_committed
from periflow_ray.store.root import StorageRoot

pytestmark = pytest.mark.usefixtures("quick_speed")
LATE = "a rank was already beyond the agreed step"


def texts(root: StorageRoot) -> list[str]:
    return [text for _, text in event_texts(root)]


def only_attempt(root: StorageRoot) -> AttemptRecord:
    (attempt,) = read_attempts(root, 1)
    return attempt


def test_a_late_rank_makes_the_step_void_for_every_node_and_a_later_one_is_agreed_on(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_and_train(pair)
        orders, leaving = Orders(monitor), notice(monitor)
        step = await orders.next_save(pair, 3)
        assert step > 3
        await monitor.miss_save(1, step)
        # Before the next one is announced, and after it: what is saved for the void step is none.
        assert await pair[0].save((step, 1)) == LATE
        later = await orders.next_save(pair, step)
        assert await pair[1].save((step, 1)) == LATE
        # Twice the time for the announcement.
        assert later - step > step - 3
        assert await save_all(pair, (later, 1)) == [None, None]
        await leaving
        assert isinstance(await orders.next(), EndAttempt)
        await leave_all(pair)
        assert await monitor.decide(1) == "new_group"
        assert [manifest.step for manifest in list_committed(root, 1)] == [later]
        save = only_attempt(root).save
        assert save is not None
        assert save.step == later

    run_monitor(scenario)


def test_a_rank_that_says_it_is_late_while_others_upload_frees_them(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_and_train(pair)
        orders, leaving = Orders(monitor), notice(monitor)
        step = await orders.next_save(pair, 3)
        saving = await pair[0].begin_save((step, 1))
        await monitor.miss_save(1, step)
        assert await saving == LATE
        assert await orders.next_save(pair, step + 1) > step + 1
        leaving.cancel()

    run_monitor(scenario)
    assert list_committed(root, 1) == []


def test_what_a_late_rank_says_of_a_step_before_the_last_announced_one_changes_nothing(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_and_train(pair)
        orders, leaving = Orders(monitor), notice(monitor)
        first = await orders.next_save(pair, 3)
        await monitor.miss_save(1, first)
        second = await orders.next_save(pair, first)
        await monitor.miss_save(1, first)
        # Nor does a rank of an attempt before.
        await monitor.miss_save(0, second)
        assert await save_all(pair, (second, 1)) == [None, None]
        await leaving

    run_monitor(scenario)


def test_a_node_that_trains_on_where_another_saves_makes_it_void(run_monitor, nodes, root):
    """In lockstep it waits for that other one and will never come to a question again."""

    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        await record_all(pair, 1)
        orders, leaving = Orders(monitor), notice(monitor)
        assert await orders.next_save(pair, 1) == SAVE_NOW
        saving = await pair[0].begin_save((1, 1))
        await pair[1].record(2)
        assert await saving == "node 1 was beyond step 1 when it should have saved"
        assert await orders.next_save(pair, 2) > 2
        leaving.cancel()

    run_monitor(scenario)
    assert list_committed(root, 1) == []


def test_a_periodic_checkpoint_on_its_way_survives_a_save_at_another_step(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        for node in pair:
            await node.record(1)
            await node.announce((1, 1))
        orders, leaving = Orders(monitor), notice(monitor)
        assert await orders.next_save(pair, 1) == SAVE_NOW
        await pair[0].announce((2, 1))
        assert await save_all(pair, (1, 1)) == [None, None]
        await leaving

    run_monitor(scenario)
    assert [manifest.step for manifest in list_committed(root, 1)] == [1]


def test_a_second_notice_with_a_nearer_deadline_ends_the_wait_and_checkpoints_are_as_usual(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_and_train(pair)
        orders, first = Orders(monitor), notice(monitor, 3600.0, node_rank=1)
        step = await orders.next_save(pair, 3)
        second = notice(monitor, 0.2, node_rank=0)
        # Nobody saves.
        assert await orders.next_save(pair, 3) == NO_STEP
        await second
        assert isinstance(await orders.next(), Rehearse)
        # What comes too late for the notice is void; the next periodic checkpoint is one again.
        assert await pair[0].save((step, 1)) == "not all nodes saved it in time"
        await pair[1].record(step + 5)
        assert await pair[0].save((step + 4, 1)) is None
        first.cancel()

    run_monitor(scenario)
    assert texts(root).count("no checkpoint was saved in time") == 1


def test_a_second_notice_after_a_save_that_failed_tries_again(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_and_train(pair)
        await notice(monitor, 0.0, node_rank=1)
        orders, second = Orders(monitor), notice(monitor, 3600.0, node_rank=0)
        assert isinstance(await orders.next(), Rehearse)
        step = await orders.next_save(pair, 3)
        assert await save_all(pair, (step, 1)) == [None, None]
        await second
        assert isinstance(await orders.next(), EndAttempt)

    run_monitor(scenario)


def test_a_notice_before_the_first_step_moves_the_job_at_once(run_monitor, root, tmp_path):
    async def scenario(monitor: ObservedMonitor) -> None:
        prepared = threading.Event()
        trained = [TrainingNode(monitor, root, tmp_path, rank, 2, Pace(), prepared=prepared) for rank in range(2)]
        training = asyncio.create_task(train_all(trained))
        await monitor.wait_for_attempt(1)
        await notice(monitor)
        # The scripts have not even begun.
        await training
        assert await monitor.decide(1) == "new_group"

    run_monitor(scenario)
    attempt = only_attempt(root)
    assert (attempt.cause, attempt.save, attempt.first_step_unix_s) == ("preemption", None, None)


def test_a_first_step_just_after_the_notice_is_either_saved_or_given_up_at_once(run_monitor, nodes):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        for num_yields in range(20):
            await join_all(pair, f"group-{num_yields}")
            leaving = notice(monitor)
            await monitor.next_orders(num_yields + 1, 0)
            for node in pair:
                await node.record(0, is_answer=True)
            for _ in range(num_yields):
                await asyncio.sleep(0)
            await record_all(pair, 1)
            orders = [ReportSteps()]
            while all(isinstance(order, ReportSteps) for order in orders):
                orders = await monitor.next_orders(num_yields + 1, 0)
                await asyncio.sleep(0.01)
            assert any(isinstance(order, SaveAt | EndAttempt) for order in orders)
            leaving.cancel()

    run_monitor(scenario)


def test_a_stop_before_the_first_step_has_nothing_to_save(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        await monitor.stop(3600.0)
        orders = Orders(monitor)
        assert [type(await orders.next()) for _ in range(2)] == [ReportSteps, EndAttempt]

    run_monitor(scenario)
    assert texts(root) == ["the job is stopped on request"]


def test_a_training_that_comes_to_its_end_before_the_agreed_step_is_a_success(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_and_train(pair)
        orders, leaving = Orders(monitor), notice(monitor)
        await orders.next_save(pair, 3)
        await leave_all(pair)
        await leaving
        assert [await monitor.decide(1) for _ in pair] == ["end", "end"]

    run_monitor(scenario)
    assert only_attempt(root).cause is None
    assert "attempt_failed" not in [kind for kind, _ in event_texts(root)]


def test_a_rank_that_fails_during_the_save_is_the_cause_and_its_checkpoint_is_none(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_and_train(pair)
        orders, leaving = Orders(monitor), notice(monitor)
        step = await orders.next_save(pair, 3)
        saving = await pair[0].begin_save((step, 1))
        await pair[1].leave(failure_of(1))
        assert await saving == "node 1 ended before its files were copied"
        await leaving
        assert isinstance(await orders.next(), EndAttempt)
        await pair[0].leave()
        assert await monitor.decide(1) == "restart"

    run_monitor(scenario)
    assert list_committed(root, 1) == []
    attempt = only_attempt(root)
    assert attempt.save is not None
    assert (attempt.cause, attempt.save.step) == ("failure", None)
