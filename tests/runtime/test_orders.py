"""What a member is ordered to do: each order does what it says, and one that is not known does nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from simulated_nodes import ObservedMonitor, event_texts, facts_of, in_thread
from simulated_ranks import Pace, Rank, TrainingShell, WrappedMonitor, run_member

from periflow_ray.jobs import JobState, write_state
from periflow_ray.jobs.requests import KillNodeDrill, KillRankDrill, NoticeDrill, take_requests
from periflow_ray.runtime.graceful_stop import GracefulStop
from periflow_ray.runtime.job_driver import JobSetup, _Driver
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.runtime.member.member import Outcome
from periflow_ray.runtime.monitor import drills
from periflow_ray.runtime.monitor.client import MonitorClient
from periflow_ray.runtime.monitor.contract import Departure, EndAttempt
from periflow_ray.runtime.monitor.drills import die
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Dance:
    """An order of a later version."""

    step: int = 1
    cause: str = "stop"


class NewerMonitor(WrappedMonitor):
    """Orders something that members do not know, before anything else."""

    def __init__(self, monitor: MonitorClient) -> None:
        super().__init__(monitor)
        self.is_carried_out = False

    def call(self, name: str, args: tuple[object, ...], call: Callable[[], Answer]) -> Answer:
        if name != "next_orders":
            return call()
        num_seen = args[1]
        if num_seen == 0:
            return [Dance()]  # type: ignore[return-value]
        # The next question comes when the order before is dealt with.
        self.is_carried_out = True
        assert isinstance(num_seen, int)
        return self.monitor.next_orders(1, num_seen - 1)  # type: ignore[return-value]


class WatchedShell(TrainingShell):
    """Remembers what it was told."""

    def __init__(self, base_dir: Path, rank: int, train: Callable[[Rank], None], pace: Pace) -> None:
        super().__init__(base_dir, rank, train, pace)
        self.told: list[str] = []

    def announce(self, step: int, departure: Departure | None) -> None:
        self.told.append("announce")
        super().announce(step, departure)

    def ask_steps(self, timeout_s: float) -> None:
        self.told.append("ask_steps")
        super().ask_steps(timeout_s)

    def end(self, order: EndAttempt) -> None:
        self.told.append("end")
        super().end(order)


def test_an_order_that_is_not_known_is_told_and_not_taken_for_another(run_monitor, root, tmp_path, wait_until):
    async def scenario(monitor: ObservedMonitor) -> None:
        client = NewerMonitor(monitor.client)

        def train(rank: Rank) -> None:
            with rank.open_session(1) as session:
                wait_until(lambda: client.is_carried_out)
                with session.train_step():
                    rank.require_alive()
            told.extend(shell.told)

        told: list[str] = []
        shell = WatchedShell(tmp_path, 0, train, Pace())
        outcome = await in_thread(lambda: run_member(client, root, facts_of(0, 1), shell))
        assert outcome == Outcome("end")
        assert told == []

    run_monitor(scenario, num_members=1)
    text = f"an order that this version does not know was not carried out: {Dance()}"
    assert event_texts(root) == [("note", text)]


def test_what_comes_after_an_order_that_is_not_known_is_carried_out(run_monitor, root, tmp_path, wait_until):
    async def scenario(monitor: ObservedMonitor) -> None:
        client = NewerMonitor(monitor.client)

        def train(rank: Rank) -> None:
            wait_until(lambda: client.is_carried_out)
            client.stop(0.0)
            rank.is_ended.wait()

        shell = WatchedShell(tmp_path, 0, train, Pace())
        outcome = await in_thread(lambda: run_member(client, root, facts_of(0, 1), shell))
        assert outcome == Outcome("end")
        assert shell.told == ["end"]

    run_monitor(scenario, num_members=1)


def test_a_drill_kills_whom_it_names_and_nobody_else(monkeypatch):
    killed: list[int] = []
    monkeypatch.setattr(drills.os, "kill", lambda pid, signal: killed.append(pid))
    monkeypatch.setattr(drills.os, "getpid", lambda: 1)
    for drill in (KillRankDrill(3), KillRankDrill(4), KillNodeDrill(0), NoticeDrill(1, 30.0)):
        die(drill, 1, {2: 22, 3: 33})
    assert killed == [33]
    die(KillNodeDrill(1), 1, {})
    assert killed == [33, 1]


def test_a_request_that_is_not_known_is_told_and_neither_stops_nor_kills(root: StorageRoot) -> None:
    write_state(root, 1, JobState("running"))
    documents = ['{"kind": "dance"}', '{"kind": "drill", "what": "kill_cluster"}', '{"kind": "stop"}']
    for number, document in enumerate(documents):
        root.write_bytes(job_key(1, "requests", f"000000000000{number}-x.json"), document.encode())
    with StateKeeper(root, 1) as state:
        stop = GracefulStop(state, is_interactive=False)
        setup = JobSetup(1, 1, {}, JobRules(1, 0, Retention()))
        driver = _Driver(root, 1, state, setup, _make_no_trainer, stop)
        for request in take_requests(root, 1):
            driver._carry_out(request)
    assert not stop.is_asked
    refused = "a request was refused: this job's version of periflow-ray does not know"
    assert [text for _, text in event_texts(root)] == [
        f"{refused} 'dance'",
        f"{refused} 'drill kill_cluster'",
        f"{refused} 'stop' without 'timeout_s'",
    ]


def _make_no_trainer(monitor: object) -> object:
    raise AssertionError("nothing is run")
