"""Nodes of one rank each that train: a real session, steps and messages that take as long as a test wants."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from simulated_nodes import facts_of

from periflow_ray.runtime.member.uploads import bring_files
from periflow_ray.runtime.monitor.actor import Monitor
from periflow_ray.sdk.channel import Hello, MetricRecord
from periflow_ray.sdk.session import NO_STEP, Session
from periflow_ray.store.checkpoints import describe_files
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import Transfer

REPORT_INTERVAL_S = 0.02


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
        self._changed = asyncio.Condition()

    async def finish(self, step: int) -> None:
        async with self._changed:
            self._num_come[step] += 1
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._num_come[step] == self._num_ranks)


class TrainingNode:
    """A node agent and its rank, which is a session's channel at the same time.

    Args:
        save_every: steps between periodic checkpoints; 0 for none.
        asks: whether the script asks ``is_emergency_save``.
        prepared: set when the checkpoint is restored and the script may begin.
    """

    def __init__(
        self,
        monitor: Monitor,
        root: StorageRoot,
        base_dir: Path,
        node_rank: int,
        num_nodes: int,
        pace: Pace,
        lockstep: Lockstep | None = None,
        save_every: int = 0,
        num_steps: int = 1_000_000,
        asks: bool = True,
        prepared: asyncio.Event | None = None,
    ) -> None:
        self.monitor = monitor
        self.rank = node_rank
        self.pace = pace
        self.emergency_steps: list[int] = []
        """Where ``is_emergency_save`` was True."""
        self.saved_steps: list[int] = []
        """Where it saved, asked or not."""
        self.last_step = 0
        self._root = root
        self._dir = base_dir / f"training-{node_rank}"
        self._facts = facts_of(node_rank, num_nodes)
        self._lockstep = lockstep
        self._save_every = save_every
        self._num_steps = num_steps
        self._asks = asks
        self._prepared = prepared
        self._num_saves: Counter[int] = Counter()
        self._announced_step = NO_STEP
        self._ended = asyncio.Event()
        self._uploads: set[asyncio.Task[str | None]] = set()
        self.session = Session()

    async def run(self, worker_group: str = "group-1") -> None:
        """Take part in an attempt until the monitor ends it or the training is done."""
        meeting = await self.monitor.join((worker_group, 0), self._facts)
        self._attempt = meeting.attempt
        if self._prepared is not None:
            await self._prepared.wait()
        self.session.use_channel_factory(lambda local_log_name: self)
        self.session.init()
        following = asyncio.create_task(self._follow())
        reporting = asyncio.create_task(self._report())
        training = asyncio.create_task(self._train())
        ending = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait([training, ending], return_when=asyncio.FIRST_COMPLETED)
            if training.done():
                training.result()
                await asyncio.gather(*self._uploads)
            # As an agent does: the commands are ended, wherever they are.
            for task in (training, reporting, ending, *self._uploads):
                task.cancel()
            await asyncio.gather(training, reporting, ending, *self._uploads, return_exceptions=True)
            await self.monitor.leave(self.rank, None)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        finally:
            await asyncio.to_thread(self.session.use_channel_factory, None)

    # The session's channel.

    def open(self, hello: Hello, on_announced_step: Callable[[int], bool], read_step: Callable[[], int]) -> None:
        self._hear, self._read_step = on_announced_step, read_step

    def send(self, step: int, records: list[MetricRecord]) -> None:
        """The simulated agent reads the step itself."""

    def save_checkpoint(self, step: int, replace_waiting: bool) -> None:
        raise AssertionError("simulated ranks save by themselves")

    def close(self) -> None:
        """Nothing is held open."""

    # The rank.

    async def _train(self) -> None:
        for _ in range(self._num_steps):
            with self.session.train_step():
                await asyncio.sleep(self.pace.step_s())
                step = self._read_step()
                if self._lockstep is not None:
                    await self._lockstep.finish(step)
                self.last_step = step
            is_emergency = self._asks and self.session.is_emergency_save()
            if is_emergency:
                self.emergency_steps.append(step)
            if is_emergency or (self._save_every and step % self._save_every == 0):
                self.saved_steps.append(step)
                upload = await self._save(step)
                # An agent that was told holds the ranks until it is settled, and if committed until the attempt's end.
                is_last = self._announced_step != NO_STEP and step >= self._announced_step
                if is_last and await asyncio.shield(upload) is None:
                    await asyncio.Event().wait()

    async def _save(self, step: int) -> asyncio.Task[str | None]:
        self._num_saves[step] += 1
        checkpoint = (step, self._num_saves[step])
        await self.monitor.record({self.rank: step}, None, [], self.rank)
        await self.monitor.announce_snapshot(self.rank, checkpoint)
        snapshot_dir = self._dir / f"{step}-{checkpoint[1]}"
        snapshot_dir.mkdir(parents=True)
        (snapshot_dir / f"rank-{self.rank}.txt").write_text(str(step))
        await asyncio.sleep(self.pace.snapshot_s())
        upload = asyncio.create_task(self._upload(checkpoint, snapshot_dir))
        self._uploads.add(upload)
        upload.add_done_callback(self._uploads.discard)
        return upload

    async def _upload(self, checkpoint: tuple[int, int], snapshot_dir: Path) -> str | None:
        name, planned = await self.monitor.begin_checkpoint(self.rank, checkpoint, describe_files(snapshot_dir))
        await asyncio.to_thread(bring_files, self._root, 1, name, planned, snapshot_dir, Transfer(self._root))
        outcome = await self.monitor.end_checkpoint(self.rank, checkpoint, None)
        shutil.rmtree(snapshot_dir)
        return outcome

    # The agent.

    async def _report(self) -> None:
        while True:
            await self.monitor.record({self.rank: self._read_step()}, None, [], self.rank)
            await asyncio.sleep(REPORT_INTERVAL_S)

    async def _follow(self) -> None:
        num_seen = 0
        while True:
            signals = await self.monitor.wait_for_signals(self._attempt, num_seen)
            num_seen += len(signals)
            for signal in signals:
                if signal.kind == "report":
                    await self.monitor.record({self.rank: self._read_step()}, None, [], self.rank, True)
                elif signal.kind == "save":
                    self._announced_step = signal.step
                    await asyncio.sleep(self.pace.announcement_s())
                    if not self._hear(signal.step):
                        await self.monitor.miss_save(self._attempt, signal.step)
                elif signal.kind == "end":
                    self._ended.set()
                    return


async def wait_for_steps(nodes: Sequence[TrainingNode]) -> None:
    """Until every rank has made a step."""
    while not all(node.last_step for node in nodes):
        await asyncio.sleep(0.001)


async def train_all(nodes: Sequence[TrainingNode], worker_group: str = "group-1") -> None:
    await asyncio.gather(*(node.run(worker_group) for node in nodes))
