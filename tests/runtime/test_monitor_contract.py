"""What every client of the monitor keeps, whether the monitor is an actor of Ray or in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from simulated_nodes import facts_of, failure_of, report_of

from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.jobs.metrics import Metric, read_metrics
from periflow_ray.jobs.requests import KillRankDrill
from periflow_ray.runtime.member.uploads import CheckpointUploads
from periflow_ray.runtime.monitor.actor import Monitor
from periflow_ray.runtime.monitor.client import MonitorClient, MonitorLostError, start_monitor
from periflow_ray.runtime.monitor.contract import (
    AttemptNews,
    EndAttempt,
    Ending,
    GroupLoss,
    Order,
    Rehearse,
    ReportSteps,
    RestoreVerdict,
)
from periflow_ray.runtime.monitor.in_process import InProcessMonitor
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.runtime.ray_train.train_run import ensure_ray, set_train_environment
from periflow_ray.store.checkpoints import latest_committed
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import Transfer

RULES = JobRules(devices_per_member=1, max_failures=-1, retention=Retention())
ANSWER_TIMEOUT_S = 60.0


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ray on loopback where a chosen test needs it; before the first test, because it outlasts all of them."""
    if not any(item.path == request.path and item.get_closest_marker("ray") for item in request.session.items):
        yield
        return
    before = dict(os.environ)
    set_train_environment()
    ensure_ray()
    yield
    ray.shutdown()
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.fixture(params=["in_process", pytest.param("ray", marks=pytest.mark.ray)])
def ending(request: pytest.FixtureRequest, root: StorageRoot) -> Iterator[tuple[MonitorClient, Callable[[], None]]]:
    """The monitor of job 1, which has two members, and what ends it."""
    with contextlib.ExitStack() as stack:
        if request.param == "ray":
            actor = start_monitor(root, 1, RULES, num_members=2)
            stack.callback(actor.end)
            yield actor, actor.end
        else:
            yield stack.enter_context(InProcessMonitor(lambda: Monitor(root, 1, RULES))), stack.close


@pytest.fixture
def client(ending: tuple[MonitorClient, Callable[[], None]]) -> MonitorClient:
    return ending[0]


@pytest.fixture
def ask() -> Iterator[Callable[..., Future[object]]]:
    """Makes a call in a thread of its own, as a member does."""
    with ThreadPoolExecutor(16) as threads:
        yield threads.submit


def answers_of(futures: Sequence[Future[object]]) -> list[object]:
    return [future.result(ANSWER_TIMEOUT_S) for future in futures]


def join_both(client: MonitorClient, ask: Callable[..., Future[object]], group: str = "group-1") -> list[object]:
    return answers_of([ask(client.join, (group, 0), facts_of(member, 2)) for member in range(2)])


def save(client: MonitorClient, root: StorageRoot, directory: Path, member: int, attempt: int, step: int) -> str | None:
    output_dir = directory / f"output-{member}"
    output_dir.mkdir(exist_ok=True)
    (output_dir / f"rank-{member}.pt").write_text(str(step))
    snapshots_dir = directory / f"snapshots-{member}-{step}"
    with CheckpointUploads(root, 1, member, client, attempt, snapshots_dir, Transfer(root)) as uploads:
        uploads.save(output_dir, (step, 1), report_of(member, step, {member: step}, attempt=attempt))
        return uploads.finish()


def test_a_client_is_what_it_promises(client):
    assert isinstance(client, MonitorClient)
    client.ping()
    assert client.describe_end() == Ending()
    assert client.newest_commit() is None


def test_an_attempt_from_joining_to_its_end(client, ask, root, tmp_path):
    news = ask(client.wait_for_attempt, 1)
    starts = join_both(client, ask)
    assert [(start.attempt, start.num_members, start.checkpoint) for start in starts] == [(1, 2, None)] * 2
    assert answers_of([news]) == [AttemptNews(1, 2, 2)]
    has_started = ask(client.wait_for_start, 1)
    for member in range(2):
        client.start(1, member)
    answers_of([has_started])
    metric = Metric(1, 0, 0, 1.0, {"loss": 0.5})
    client.report(report_of(0, 1, {0: 1}, [metric], total_train_steps=2))
    client.report(report_of(1, 1, {1: 1}))
    assert answers_of([ask(save, client, root, tmp_path, member, 1, 2) for member in range(2)]) == [None, None]
    newest = client.newest_commit()
    assert newest is not None
    assert (newest.step, newest.metrics) == (2, {"loss": 0.5})
    assert [client.has_committed(snapshot) for snapshot in [(2, 1), (2, 2)]] == [True, False]
    ended = ask(client.wait_for_end, 1)
    for member in range(2):
        client.leave(1, member, None)
    assert answers_of([ask(client.decide, 1) for _ in range(2)]) == ["end", "end"]
    (record,) = answers_of([ended])
    assert (record.number, record.cause, record.last_step, record.resumable_step) == (1, None, 2, 2)
    client.close()
    assert read_attempts(root, 1) == [record]
    assert read_metrics(root, 1, rank=None) == [metric]


def test_members_meet_at_a_report_and_hear_whether_any_of_them_brings_files(client, ask):
    join_both(client, ask)
    first = ask(client.meet_at_report, 1, 0, 1, False)
    assert client.meet_at_report(1, 1, 1, True)
    assert answers_of([first]) == [True]
    # An answer that was lost is asked for again, while others are at the next report.
    second = ask(client.meet_at_report, 1, 0, 2, False)
    assert client.meet_at_report(1, 1, 1, True)
    assert not client.meet_at_report(1, 1, 2, False)
    assert answers_of([second]) == [False]
    # Nobody waits for one that has come to its end, nor in an attempt that is over.
    third = ask(client.meet_at_report, 1, 0, 3, True)
    client.leave(1, 1, None)
    assert answers_of([third]) == [True]
    assert not client.meet_at_report(7, 0, 1, True)


def test_a_failed_attempt_is_followed_by_one_that_restores(client, ask, root, tmp_path):
    join_both(client, ask)
    answers_of([ask(save, client, root, tmp_path, member, 1, 2) for member in range(2)])
    client.settle_uploads()
    client.leave(1, 0, failure_of(0))
    assert client.next_orders(1, 0) == [EndAttempt("failure", failure_of(0).headline())]
    client.leave(1, 1, None)
    assert answers_of([ask(client.decide, 1) for _ in range(2)]) == ["restart", "restart"]
    assert client.describe_end() == Ending(None, (failure_of(0),), failure_of(0).headline(), last_step=2)
    starts = join_both(client, ask, "group-2")
    committed = latest_committed(root, 1)
    assert committed is not None
    assert [(start.attempt, start.checkpoint) for start in starts] == [(2, committed)] * 2
    verdicts = [ask(client.settle_restore, member, committed.checkpoint, None) for member in range(2)]
    assert answers_of(verdicts) == [RestoreVerdict(True, committed)] * 2


def test_after_a_failure_that_another_attempt_would_meet_as_well_there_is_none(client, ask):
    join_both(client, ask)
    client.leave(1, 0, dataclasses.replace(failure_of(0), is_final=True))
    client.leave(1, 1, None)
    assert answers_of([ask(client.decide, 1) for _ in range(2)]) == ["end", "end"]
    assert client.describe_end().why_over == "another attempt would fail in the same way"


def test_ranks_wait_for_each_other(client, ask):
    join_both(client, ask)
    first = ask(client.barrier, 1, 0, (5, 1), "written")
    # A later call of the same thread is answered while the other waits.
    client.ping()
    assert not first.done()
    client.barrier(1, 1, (5, 1), "written")
    answers_of([first])


def test_orders_come_in_turn_and_the_last_one_ends_the_attempt(client, ask):
    join_both(client, ask)
    first = ask(client.next_orders, 1, 0)
    # Neither of these waits for what it leads to.
    client.drill(KillRankDrill(7))
    assert answers_of([first]) == [[Rehearse(KillRankDrill(7))]]
    client.grow(2)
    assert client.stop(0.0) is True
    orders: list[Order] = []
    while not any(isinstance(order, EndAttempt) for order in orders):
        orders += client.next_orders(1, 1 + len(orders))
    # What is asked for because of the growth comes before it.
    assert orders[-1] == EndAttempt("stop", "stopped on request")
    assert all(order == ReportSteps() for order in orders[:-1])
    for member in range(2):
        client.leave(1, member, None)
    assert client.decide(1) == "end"
    assert client.stop(0.0) is False


def test_a_broken_group_is_replaced_once_however_often_it_is_told(client, ask):
    join_both(client, ask)
    losses = [ask(client.may_replace_group, GroupLoss(1, {1: "The actor died"})) for _ in range(2)]
    assert answers_of(losses) == [True, True]
    client.leave(1, 0, None)
    assert client.decide(1) == "new_group"


def test_an_error_of_the_monitors_own_is_raised_by_the_call(client, ask, root):
    join_both(client, ask)
    # A snapshot that is none, as a bug would make one.
    with pytest.raises(TypeError):
        client.barrier(1, 0, None, "written")
    # It lives on.
    client.ping()


def test_whoever_asks_a_monitor_that_is_gone_hears_of_it(ending, ask):
    client, end = ending
    join_both(client, ask)
    waiting = ask(client.next_orders, 1, 0)
    client.ping()
    end()
    with pytest.raises(MonitorLostError):
        waiting.result(ANSWER_TIMEOUT_S)
    with pytest.raises(MonitorLostError):
        client.ping()
