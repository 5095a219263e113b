from __future__ import annotations

import asyncio
import dataclasses

from simulated_nodes import (
    Node,
    ObservedMonitor,
    event_texts,
    failure_of,
    join_all,
    join_ranks_of_one_node,
    leave_all,
    record_all,
    report_of,
    save_all,
)

from periflow_ray.jobs import JobProgress, read_progress
from periflow_ray.jobs.metrics import Metric, read_metrics
from periflow_ray.jobs.requests import KillNodeDrill, KillRankDrill
from periflow_ray.runtime.monitor import recorder
from periflow_ray.runtime.monitor.contract import AttemptNews, AttemptStart, EndAttempt
from periflow_ray.store.checkpoints import (
    latest_committed,
)


def test_no_member_gets_on_before_all_have_joined(run_monitor, nodes):
    async def scenario(monitor: ObservedMonitor) -> None:
        log: list[str] = []

        async def join(node: Node) -> AttemptStart:
            log.append("came")
            start = await node.join()
            log.append("got on")
            return start

        starts = await asyncio.gather(*(join(node) for node in reversed(nodes(monitor, 3))))
        assert log == ["came"] * 3 + ["got on"] * 3
        interval_s = starts[0].report_interval_s
        assert starts == [AttemptStart(1, 3, "10.0.0.0", 29500, None, interval_s)] * 3

    run_monitor(scenario, num_members=3)


def test_the_driver_learns_when_an_attempt_has_joined_and_when_it_started(run_monitor, nodes):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        has_joined = asyncio.create_task(monitor.wait_for_attempt(1))
        await join_all([first, second])
        assert await has_joined == AttemptNews(1, num_members=2, num_nodes=2)
        has_started = asyncio.create_task(monitor.wait_for_start(1))
        await monitor.start(1, 0)
        await asyncio.sleep(0)
        assert not has_started.done()
        await monitor.start(1, 1)
        await has_started

    run_monitor(scenario)


def test_a_new_worker_group_is_a_new_attempt_from_the_latest_checkpoint(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        await save_all(pair, (10, 1))
        await record_all(pair, 17)
        await asyncio.gather(*(node.leave(failure_of(node.node_rank)) for node in pair))
        assert len((await monitor.describe_end()).failures) == 2

        second_attempt = asyncio.create_task(monitor.wait_for_attempt(2))
        starts = await join_all(pair, "group-2")
        committed = latest_committed(root, 1)
        assert committed is not None
        interval_s = starts[0].report_interval_s
        assert starts == [AttemptStart(2, 2, "10.0.0.0", 29500, committed, interval_s)] * 2
        assert await second_attempt == AttemptNews(2, 2, 2)
        assert (await monitor.describe_end()).failures == ()
        # Nor is there a commit of this one yet.
        assert await monitor.newest_commit() is None
        # The steps of the first attempt are forgotten: node 1 has not passed step 12 this time.
        saving = await pair[0].begin_save((12, 1))
        await pair[1].record(11)
        await asyncio.sleep(0)
        assert not saving.done()
        assert await monitor.newest_commit() is None
        assert await pair[1].save((12, 1)) is None
        assert await saving is None
        manifest = await monitor.newest_commit()
        assert manifest is not None
        assert (manifest.step, manifest.attempt) == (12, 2)

    run_monitor(scenario)


def test_a_wait_for_the_start_of_an_attempt_that_is_over_ends(run_monitor, nodes):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        has_started = asyncio.create_task(monitor.wait_for_start(1))
        await join_all(pair, "group-2")
        await has_started

    run_monitor(scenario)


def test_the_newest_commit_is_known_when_all_have_left(run_monitor, nodes):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        for step in (5, 10):
            await save_all(pair, (step, 1))
            newest = await monitor.newest_commit()
            assert newest is not None
            assert newest.step == step
        assert [await monitor.has_committed((step, 1)) for step in (5, 10, 15)] == [True, True, False]
        await leave_all(pair)
        assert await monitor.newest_commit() == newest

    run_monitor(scenario)


def test_the_first_failure_in_time_is_the_cause(run_monitor, nodes):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await first.leave(failure_of(0, time_unix_s=20.0))
        await second.leave(failure_of(1, time_unix_s=10.0))
        assert (await monitor.describe_end()).failures == (failure_of(1, 10.0), failure_of(0, 20.0))

    run_monitor(scenario)


def test_ranks_of_one_node_meet_at_every_phase_of_a_checkpoint(run_monitor):
    async def scenario(monitor: ObservedMonitor) -> None:
        await join_ranks_of_one_node(monitor)
        log: list[str] = []

        async def save(rank: int) -> None:
            for phase in ("written", "copied"):
                log.append(f"came to {phase}")
                await monitor.barrier(1, rank, (10, 1), phase)
                log.append(f"left {phase}")

        await asyncio.gather(save(0), save(1))
        assert log[:2] == ["came to written"] * 2
        assert [entry for entry in log if "copied" in entry] == ["came to copied"] * 2 + ["left copied"] * 2

    run_monitor(scenario)


def test_a_rank_that_left_is_not_met(run_monitor):
    async def scenario(monitor: ObservedMonitor) -> None:
        await join_ranks_of_one_node(monitor)
        waiting = asyncio.create_task(monitor.barrier(1, 0, (10, 1), "written"))
        await asyncio.sleep(0)
        assert not waiting.done()
        await monitor.leave(1, 1, None)
        await waiting

    run_monitor(scenario)


def test_a_rank_that_is_beyond_the_step_is_not_met(run_monitor):
    async def scenario(monitor: ObservedMonitor) -> None:
        await join_ranks_of_one_node(monitor)
        waiting = asyncio.create_task(monitor.barrier(1, 0, (10, 1), "written"))
        await asyncio.sleep(0)
        assert not waiting.done()
        await monitor.report(report_of(1, 1, {1: 11}))
        await asyncio.wait_for(waiting, 10)

    run_monitor(scenario)


def test_metrics_and_progress_are_complete_when_the_monitor_is_closed(run_monitor, nodes, root):
    metrics = [
        Metric(1, 0, 0, 1.0, {"loss": 0.5, "lr": 0.1}),
        Metric(1, 1, 1, 1.0, {"loss": 8.0}),
        Metric(2, 0, 0, 2.0, {"loss": 0.25}),
    ]

    async def scenario(monitor: ObservedMonitor) -> None:
        await join_all(nodes(monitor))
        await monitor.report(report_of(0, 1, {0: 1, 1: 1}, metrics[:2], 40))
        await monitor.report(report_of(0, 2, {0: 2, 1: 1}, metrics[2:]))
        await monitor.report(report_of(1, 1, {2: 7, 3: 7}))

    run_monitor(scenario)
    assert read_metrics(root, 1, rank=None) == metrics
    progress = read_progress(root, 1)
    assert dataclasses.replace(progress, steps_per_s=None) == JobProgress(2, 40, None, {"loss": 0.25, "lr": 0.1})
    assert len(root.list_names("jobs/1/tensorboard")) == 1


def test_metrics_and_events_survive_a_storage_that_fails_for_a_while(run_monitor, nodes, root, monkeypatch):
    monkeypatch.setattr(recorder, "FLUSH_INTERVAL_S", 0.01)
    blocked = [root.local_path(f"jobs/1/{name}") for name in ("metrics", "events")]
    errors: list[str] = []
    monkeypatch.setattr("sys.stderr.write", errors.append)

    async def scenario(monitor: ObservedMonitor) -> None:
        for path in blocked:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("in the way")
        await join_all(nodes(monitor))
        await monitor.report(report_of(0, 1, {0: 1}, [Metric(1, 0, 0, 1.0, {"loss": 0.5})]))
        await monitor.drill(KillRankDrill(0))
        while not {"metrics", "an"} <= {error.split(" ")[0] for error in errors}:
            await asyncio.sleep(0.01)
        for path in blocked:
            path.unlink()
        await monitor.drill(KillNodeDrill(1))

    run_monitor(scenario)
    assert read_metrics(root, 1, rank=None) == [Metric(1, 0, 0, 1.0, {"loss": 0.5})]
    assert event_texts(root) == [("note", "drill: kills rank 0"), ("note", "drill: kills node 1")]


def test_the_speed_is_that_of_rank_0(run_monitor, nodes, root, monkeypatch):
    monkeypatch.setattr(recorder, "MIN_RATE_WINDOW_S", 0.0)

    async def scenario(monitor: ObservedMonitor) -> None:
        await join_all(nodes(monitor))
        # The first step is not counted: it takes longer than others.
        for step in (100, 200, 300):
            await monitor.report(report_of(0, step, {0: step, 1: 0}, total_train_steps=1000))

    run_monitor(scenario)
    progress = read_progress(root, 1)
    assert progress.steps_per_s is not None
    assert progress.steps_per_s > 0


def test_one_batch_of_records_says_nothing_of_the_speed(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        await join_all(nodes(monitor))
        await monitor.report(report_of(0, 1, {0: 100}, total_train_steps=1000))

    run_monitor(scenario)
    assert read_progress(root, 1) == JobProgress(100, 1000, None, {})


def test_every_member_that_waits_hears_of_a_stop(run_monitor, nodes):
    async def scenario(monitor: ObservedMonitor) -> None:
        await join_all(nodes(monitor))
        waiting = [asyncio.create_task(monitor.next_orders(1, 0)) for _ in range(2)]
        await monitor.stop(timeout_s=0)
        end = EndAttempt(cause="stop", text="stopped on request")
        assert await asyncio.gather(*waiting) == [[end]] * 2
        assert await monitor.next_orders(1, 0) == [end]

    run_monitor(scenario)


def test_an_attempt_that_ended_without_a_word_is_recorded_when_the_next_one_begins(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        await join_all(pair, "group-2")

    run_monitor(scenario)
    assert event_texts(root) == [("attempt_failed", "attempt 1 ended: a worker or its machine died")]
