"""Nodes of one rank each that train: members and sessions as they are, ranks in threads, times as a test wants.

Long because it is the shell, the rank and the pace of a simulated member.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from simulated_nodes import ObservedMonitor, facts_of, in_thread, wait_for

from periflow_ray.jobs.events import EventWriter
from periflow_ray.jobs.logs import LogWriter
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.function_jobs.channel import FunctionChannel
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.runtime.member.member import Member, Outcome
from periflow_ray.runtime.member.shell import Links, Records, Shell
from periflow_ray.runtime.monitor.actor import Monitor
from periflow_ray.runtime.monitor.client import MonitorCalls, MonitorClient
from periflow_ray.runtime.monitor.contract import AttemptStart, Departure, EndAttempt, MemberFacts
from periflow_ray.sdk.session import Session
from periflow_ray.store.root import StorageRoot

_WAKE_INTERVAL_S = 0.05
# PROCESSED_ITERS is the process's, and the ranks of a test begin at the same step.
_opening = threading.Lock()

Params = ParamSpec("Params")
Answer = TypeVar("Answer")


@dataclass
class Pace:
    """How long things take, in seconds; each is asked anew every time."""

    step_s: Callable[[], float] = lambda: 0.001
    announcement_s: Callable[[], float] = lambda: 0.0
    snapshot_s: Callable[[], float] = lambda: 0.0


class Lockstep:
    """Ends a step of all ranks together, as the exchange of gradients does."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._num_come: Counter[int] = Counter()
        self._changed = threading.Condition()

    def finish(self, step: int, is_ended: threading.Event) -> None:
        """Wait for the others, but not beyond the end of this rank's process."""
        with self._changed:
            self._num_come[step] += 1
            self._changed.notify_all()
            while self._num_come[step] < self._num_ranks and not is_ended.is_set():
                self._changed.wait(_WAKE_INTERVAL_S)


class WrappedMonitor(MonitorCalls):
    """A client that hands every call on; what comes in between is for others to add.

    Args:
        monitor: the client that is wrapped.
    """

    def __init__(self, monitor: MonitorClient) -> None:
        self.monitor = monitor

    def call(self, name: str, args: tuple[object, ...], call: Callable[[], Answer]) -> Answer:
        """Make a call, which has this name and arguments."""
        return call()

    def _ask(
        self,
        method: Callable[Concatenate[Monitor, Params], Awaitable[Answer]],
        *args: Params.args,
        **kwargs: Params.kwargs,
    ) -> Answer:
        return self.call(method.__name__, args, lambda: getattr(self.monitor, method.__name__)(*args, **kwargs))

    def _tell(
        self,
        method: Callable[Concatenate[Monitor, Params], Awaitable[None]],
        *args: Params.args,
        **kwargs: Params.kwargs,
    ) -> None:
        self._ask(method, *args, **kwargs)


class SlowCopies(WrappedMonitor):
    """Takes its time between the announcement of a snapshot and its copy."""

    def __init__(self, monitor: MonitorClient, pace: Pace) -> None:
        super().__init__(monitor)
        self._pace = pace

    def call(self, name: str, args: tuple[object, ...], call: Callable[[], Answer]) -> Answer:
        answer = call()
        if name == "announce_snapshot":
            time.sleep(self._pace.snapshot_s())
        return answer


class _RankEndedError(BaseException):
    """The rank's process was killed; nothing in it may catch that."""


@dataclass
class Rank:
    """A rank's process in one attempt."""

    rank: int
    output_dir: Path
    resumed_step: int
    channel: FunctionChannel
    is_ended: threading.Event

    @contextlib.contextmanager
    def open_session(self, total_train_steps: int | None = None) -> Iterator[Session]:
        """The SDK's session, at the step that this rank resumes from."""
        session = Session()
        with _opening:
            os.environ["PROCESSED_ITERS"] = str(self.resumed_step)
            try:
                session.use_channel_factory(lambda local_log_name: self.channel)
                session.init(total_train_steps)
            finally:
                del os.environ["PROCESSED_ITERS"]
        try:
            yield session
        finally:
            session.use_channel_factory(None)

    def require_alive(self) -> None:
        """Go no further where a real process would have been killed."""
        if self.is_ended.is_set():
            raise _RankEndedError


class TrainingShell:
    """Runs a script as one rank in a thread, which counts as a process: ``end`` takes effect wherever it is.

    Args:
        train: the script.
    """

    brings_files = True
    restarts_in_place = True
    meets_others = False

    def __init__(self, base_dir: Path, rank: int, train: Callable[[Rank], None], pace: Pace) -> None:
        self.output_dir: Path | None = base_dir / "output"
        self._snapshots_dir = base_dir / "snapshots"
        self._rank = rank
        self._train = train
        self._pace = pace
        self._channel: FunctionChannel | None = None
        self._is_ended, self._is_over = threading.Event(), threading.Event()
        self._failure: Failure | None = None

    def prepare(self, attempt: int, tell: Callable[[str], None]) -> Path:
        return self._snapshots_dir / str(attempt)

    def start(self, start: AttemptStart, links: Links) -> None:
        is_ended = threading.Event()

        def save(step: int, replace_waiting: bool) -> None:
            links.save(step, replace_waiting)
            rank.require_alive()

        assert self.output_dir is not None
        resumed_step = 0 if start.checkpoint is None else start.checkpoint.step
        channel = FunctionChannel(self._rank, 0, save, links.miss_save)
        rank = Rank(self._rank, self.output_dir, resumed_step, channel, is_ended)
        self._channel, self._is_ended, self._is_over, self._failure = channel, is_ended, threading.Event(), None
        threading.Thread(target=self._run, args=(rank, self._is_over), name="rank", daemon=True).start()

    def wait(self) -> Failure | None:
        self._is_over.wait()
        return self._failure

    def take_records(self) -> Records:
        return Records({}) if self._channel is None else self._channel.take_records()

    def ask_steps(self, timeout_s: float) -> None:
        if self._channel is not None:
            self._channel.ask_step()

    def announce(self, step: int, departure: Departure | None) -> None:
        time.sleep(self._pace.announcement_s())
        if self._channel is not None:
            self._channel.announce(step)

    def pids(self) -> Mapping[int, int]:
        return {}

    def end(self, order: EndAttempt) -> None:
        self._is_ended.set()
        self._is_over.set()

    def leave_group(self, reason: str) -> None:
        raise AssertionError("a rank in a thread can be ended")

    def check(self) -> Failure | None:
        return None

    def close(self) -> None:
        self._is_ended.set()

    def _run(self, rank: Rank, is_over: threading.Event) -> None:
        try:
            self._train(rank)
        except _RankEndedError:
            return
        except BaseException as err:
            if not rank.is_ended.is_set():
                summary = f"{type(err).__name__}: {err}"
                self._failure = Failure(rank.rank, time.time(), rank=rank.rank, summary=summary)
        is_over.set()


class FunctionLikeShell(TrainingShell):
    """Of the kind whose ranks meet those of other members, and that ends with its process."""

    restarts_in_place = False
    meets_others = True

    def end(self, order: EndAttempt) -> None:
        raise AssertionError("a function cannot be ended from outside")

    def leave_group(self, reason: str) -> None:
        super().end(EndAttempt())


class TrainingNode:
    """A node with one rank that makes steps and saves.

    Args:
        save_every: steps between periodic checkpoints; 0 for none.
        asks_every: steps between the script's questions ``is_emergency_save``; 0 for none.
        prepared: set when the script may begin.
        client: its way to the monitor; None for the monitor's own.
    """

    def __init__(
        self,
        monitor: ObservedMonitor,
        root: StorageRoot,
        base_dir: Path,
        node_rank: int,
        num_nodes: int,
        pace: Pace,
        lockstep: Lockstep | None = None,
        save_every: int = 0,
        num_steps: int = 1_000_000,
        asks_every: int = 1,
        prepared: threading.Event | None = None,
        client: MonitorClient | None = None,
    ) -> None:
        self.emergency_steps: list[int] = []
        """Where ``is_emergency_save`` was True."""
        self.saved_steps: list[int] = []
        """Where it saved, asked or not."""
        self.last_step = 0
        self._monitor = SlowCopies(client or monitor.client, pace)
        self._root = root
        self._dir = base_dir / f"training-{node_rank}"
        self._facts = facts_of(node_rank, num_nodes)
        self._pace = pace
        self._lockstep = lockstep
        self._save_every = save_every
        self._num_steps = num_steps
        self._asks_every = asks_every
        self._prepared = prepared

    async def run(self, worker_group: str = "group-1") -> Outcome:
        """Take part until the monitor ends the attempt or the training is done."""
        shell = TrainingShell(self._dir, self._facts.member, self._train, self._pace)
        return await in_thread(lambda: run_member(self._monitor, self._root, self._facts, shell, worker_group))

    def _train(self, rank: Rank) -> None:
        while self._prepared is not None and not self._prepared.wait(_WAKE_INTERVAL_S):
            rank.require_alive()
        with rank.open_session() as session:
            for step in range(rank.resumed_step + 1, self._num_steps + 1):
                with session.train_step():
                    time.sleep(self._pace.step_s())
                    if self._lockstep is not None:
                        self._lockstep.finish(step, rank.is_ended)
                    rank.require_alive()
                    self.last_step = step
                is_asking = self._asks_every and step % self._asks_every == 0
                is_emergency = is_asking and session.is_emergency_save()
                if is_emergency:
                    self.emergency_steps.append(step)
                if is_emergency or (self._save_every and step % self._save_every == 0):
                    self.saved_steps.append(step)
                    (rank.output_dir / f"rank-{rank.rank}.txt").write_text(str(step))
                    session.upload_checkpoint()


def run_member(
    monitor: MonitorClient, root: StorageRoot, facts: MemberFacts, shell: Shell, worker_group: str = "group-1"
) -> Outcome:
    """A member's part in job 1, to its end."""
    notes = EventWriter(root, 1, f"member-{facts.member}")
    with MemberLog(LogWriter(root, 1, facts.node_rank, facts.member), f"member {facts.member}", is_local=True) as log:
        return Member(
            monitor,
            root,
            1,
            describe=lambda: facts,
            group=worker_group,
            shell=shell,
            log=log,
            note=lambda text: notes.write("note", text),
        ).run()


async def wait_for_steps(nodes: Sequence[TrainingNode]) -> None:
    """Until every rank has made a step."""
    await wait_for(lambda: all(node.last_step for node in nodes))


async def train_all(nodes: Sequence[TrainingNode], worker_group: str = "group-1") -> list[Outcome]:
    return await asyncio.gather(*(node.run(worker_group) for node in nodes))
