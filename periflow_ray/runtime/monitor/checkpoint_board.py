"""Where the nodes of an attempt agree on checkpoints: who takes part, who uploads what, when it is committed.

Lives in the monitor and shares its condition. The storage is never touched while the condition is held, so that a
slow one does not hold up the ranks' reports.

Long because announcing, uploading and committing a checkpoint change the same entries under one condition.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.jobs import read_record
from periflow_ray.runtime.monitor.agreed_save import AgreedSave, CheckpointId
from periflow_ray.runtime.monitor.attempt import Attempt
from periflow_ray.runtime.monitor.kept_checkpoints import KeptCheckpoints, Retention
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints import LocalFile, Manifest, PlannedFile
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.size_text import format_size

# How long a failed attempt lasts for the sake of a checkpoint that is almost there.
UPLOADS_TIMEOUT_S = 20.0
_CUT_SHORT = "the attempt ended before all of it was uploaded"


class AttemptView(Protocol):
    """What the board asks the monitor."""

    def current_attempt(self) -> Attempt:
        """The attempt under way."""

    def newest_metrics(self) -> Mapping[str, Any]:
        """For the manifest."""

    def write_event(self, kind: str, text: str) -> None:
        """For the user to read."""


@dataclass
class _Pending:
    """A checkpoint that is not settled; with an ``error`` it never will be committed."""

    name: asyncio.Task[str] | None = None
    announced_nodes: set[int] = field(default_factory=set)
    files_by_node: dict[int, list[LocalFile]] = field(default_factory=dict)
    plan: list[PlannedFile] | None = None
    finished_nodes: set[int] = field(default_factory=set)
    settling: asyncio.Task[None] | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    is_committing: bool = False
    is_written: asyncio.Event = field(default_factory=asyncio.Event)
    is_settled: bool = False
    began_s: float = field(default_factory=time.monotonic)

    def abandon(self, reason: str) -> None:
        if self.is_committing:  # All of its files are there: whatever happens now does not make it less.
            return
        self.error = self.error or reason
        self.plan = self.plan or []


class CheckpointBoard:
    """The checkpoints of one attempt after the other."""

    def __init__(
        self, root: StorageRoot, job_id: int, retention: Retention, changed: asyncio.Condition, view: AttemptView
    ) -> None:
        self._root = root
        self._job_id = job_id
        self._changed = changed
        self._view = view
        self._pending: dict[CheckpointId, _Pending] = {}
        self._naming = asyncio.Lock()
        self._chosen_names: set[str] = set()
        self._failed_nodes: set[int] = set()
        self._agreed = AgreedSave()
        self._kept = KeptCheckpoints(root, job_id, retention, view.write_event)
        self._created_by: str | None = None
        self.commits: list[Manifest] = []
        self.save_time_s = 0.0
        """Seconds from the first snapshot of the newest committed checkpoint to its commit."""

    @property
    def newest(self) -> Manifest | None:
        """The newest committed checkpoint of the job."""
        return self._kept.newest

    @property
    def has_pending(self) -> bool:
        """Whether a checkpoint is on its way."""
        return bool(self._unsettled())

    async def begin_attempt(self) -> None:
        """Forget what the attempt before left unsettled, after its last commit is through."""
        for pending in self._pending.values():
            if pending.settling is not None:
                # Not for the task: it ends with the condition, which whoever begins the attempt holds.
                await pending.is_written.wait()
            pending.abandon(_CUT_SHORT)
        self._pending = {}
        self._chosen_names = set()
        self._failed_nodes = set()
        self._agreed = AgreedSave()
        self.commits = []
        with contextlib.suppress(NotFoundError):
            self._created_by = (await asyncio.to_thread(read_record, self._root, self._job_id)).created_by
        await asyncio.to_thread(checkpoints.sweep_partials, self._root, self._job_id, _CUT_SHORT)
        await self._kept.read()

    def require_all_nodes(self, first_step: int) -> None:
        """Of what is begun from now on, a checkpoint from this step on is none without every node's files, at one step.

        Without it a node whose ranks are beyond the step is taken for one that does not save.
        """
        self._agreed.require(first_step, [key for key, pending in self._pending.items() if pending.error is None])

    @property
    def agreed(self) -> AgreedSave:
        """What became of the checkpoint that ``require_all_nodes`` asked for."""
        return self._agreed

    def make_agreed_void(self, reason: str) -> None:
        """A rank heard of the agreed step too late: what nodes save because of it is none, also if it comes later."""
        self._agreed.make_void(reason)
        self._abandon_void()

    def check_agreed(self) -> None:
        """Make it void if a node is beyond the step at which another one saves: its files will not come."""
        attempt = self._view.current_attempt()
        for checkpoint, pending in self._pending.items():
            if not self._agreed.is_asked_for(checkpoint) or pending.is_settled:
                continue
            absent = attempt.present_nodes() - pending.announced_nodes - set(pending.files_by_node)
            if any(not attempt.may_still_save(node_rank, checkpoint[0]) for node_rank in absent):
                self.make_agreed_void(f"node {min(absent)} was beyond step {checkpoint[0]} when it should have saved")

    def end_agreed(self, last_step: int, reason: str) -> None:
        """Ask for nothing any more: beyond this step the usual rules hold again."""
        self._agreed.end(last_step, reason)
        self._abandon_void()

    def see(self, checkpoint: CheckpointId) -> None:
        """A rank has begun to save."""
        self._agreed.see(checkpoint)
        self._abandon_void()

    def announce(self, node_rank: int, checkpoint: CheckpointId) -> None:
        """A node takes its snapshot; ``begin`` or ``withdraw`` follows."""
        self.see(checkpoint)
        pending = self._pending_of(checkpoint)
        pending.announced_nodes.add(node_rank)
        if node_rank == 0:
            # Rank 0 is on node 0 and has just reported; later on its metrics are those of later steps.
            pending.metrics = dict(self._view.newest_metrics())

    def withdraw(self, checkpoint: CheckpointId, reason: str) -> None:
        """A node that announced itself will not upload; nobody's upload is needed then."""
        pending = self._pending_of(checkpoint)
        if not pending.files_by_node and pending.error is None:
            self._view.write_event("checkpoint_failed", f"checkpoint at step {checkpoint[0]} was not saved: {reason}")
        pending.abandon(reason)

    async def begin(
        self, node_rank: int, checkpoint: CheckpointId, files: list[LocalFile]
    ) -> tuple[str, list[PlannedFile]]:
        """Describe a node's snapshot; returns the checkpoint's name and what this node has to bring."""
        async with self._changed:
            pending = self._pending_of(checkpoint)
            pending.files_by_node[node_rank] = files
            if pending.name is None:
                pending.name = asyncio.create_task(self._open(checkpoint[0]))
            self._changed.notify_all()
            await self._changed.wait_for(lambda: pending.plan is not None or self._is_complete(checkpoint, pending))
            if pending.plan is None:
                restored = self._view.current_attempt().checkpoint
                pending.plan = checkpoints.merge_files(pending.files_by_node, self._kept.newest, restored)
        try:
            name = await pending.name
        except (OSError, StorageError) as err:
            pending.abandon(str(err))
            return "", []
        return name, [file for file in pending.plan if file.node_rank == node_rank]

    async def finish(self, node_rank: int, checkpoint: CheckpointId, error: str | None) -> str | None:
        """A node's files are there (or its upload failed); None once the checkpoint is committed, else why not."""
        pending = self._pending_of(checkpoint)
        async with self._changed:
            pending.finished_nodes.add(node_rank)
            if error is not None:
                pending.abandon(error)
            if pending.settling is None and pending.finished_nodes >= set(pending.files_by_node):
                pending.settling = asyncio.create_task(self._settle(checkpoint, pending))
            self._changed.notify_all()
            await self._changed.wait_for(lambda: pending.is_settled)
        return pending.error

    async def wait_for_uploads(self, dead_nodes: Collection[int] = ()) -> None:
        """Wait until what is on its way is settled, but not for nodes that died, nor for ever; holds the condition."""

        def is_coming(pending: _Pending) -> bool:
            waits_for_dead = any(
                node in dead_nodes and node not in pending.finished_nodes for node in pending.announced_nodes
            )
            return not (pending.is_settled or pending.error is not None or waits_for_dead)

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(
                self._changed.wait_for(lambda: not any(map(is_coming, self._pending.values()))), UPLOADS_TIMEOUT_S
            )

    def drop_node(self, node_rank: int) -> None:
        """A node has failed or was ended: without its files a checkpoint would be half of one."""
        self._failed_nodes.add(node_rank)
        for pending in self._pending.values():
            self._abandon_without_failed_nodes(pending)

    async def close(self) -> None:
        """Wait for deletions under way."""
        await self._kept.close()

    def _unsettled(self) -> list[CheckpointId]:
        return [checkpoint for checkpoint, pending in self._pending.items() if not pending.is_settled]

    def _pending_of(self, checkpoint: CheckpointId) -> _Pending:
        if checkpoint not in self._pending:
            self._pending[checkpoint] = _Pending()
            self._abandon_without_failed_nodes(self._pending[checkpoint])
            self._abandon_void()
        return self._pending[checkpoint]

    def _abandon_void(self) -> None:
        for checkpoint, pending in self._pending.items():
            reason = self._agreed.why_void(checkpoint)
            if reason is not None:
                pending.abandon(reason)

    def _abandon_without_failed_nodes(self, pending: _Pending) -> None:
        missing = self._failed_nodes - set(pending.files_by_node)
        if missing:
            pending.abandon(f"node {min(missing)} ended before its files were copied")

    def _is_complete(self, checkpoint: CheckpointId, pending: _Pending) -> bool:
        attempt = self._view.current_attempt()
        absent = attempt.present_nodes() - set(pending.files_by_node)
        if self._agreed.is_asked_for(checkpoint):
            return not absent
        # A node whose ranks are all beyond the step will not come.
        return not any(
            node_rank in pending.announced_nodes or attempt.may_still_save(node_rank, checkpoint[0])
            for node_rank in absent
        )

    async def _open(self, step: int) -> str:
        async with self._naming:
            name = await asyncio.to_thread(
                checkpoints.choose_name, self._root, self._job_id, step, frozenset(self._chosen_names)
            )
            self._chosen_names.add(name)
        attempt = self._view.current_attempt().number
        await asyncio.to_thread(checkpoints.begin, self._root, self._job_id, name, step, attempt)
        return name

    async def _settle(self, checkpoint: CheckpointId, pending: _Pending) -> None:
        step = checkpoint[0]
        name: str | None = None
        try:
            if pending.name is not None:
                name = await pending.name
            if name is not None and pending.error is None:
                pending.is_committing = True
                manifest = self._describe(name, step, pending)
                await self._commit(manifest)
                self.save_time_s = time.monotonic() - pending.began_s
                self._agreed.take_commit(checkpoint, manifest)
        except (OSError, StorageError) as err:
            pending.error = str(err)
        if pending.error is not None:
            self._view.write_event("checkpoint_failed", f"checkpoint at step {step} was not saved: {pending.error}")
            if name is not None:
                # Where the storage does not even take this, the next attempt's sweep does it.
                with contextlib.suppress(OSError, StorageError):
                    await asyncio.to_thread(checkpoints.mark_failed, self._root, self._job_id, name, pending.error)
        pending.is_written.set()
        async with self._changed:
            pending.is_settled = True
            self._changed.notify_all()

    async def _commit(self, manifest: Manifest) -> None:
        await asyncio.to_thread(checkpoints.commit, self._root, manifest)
        self.commits.append(manifest)
        size = format_size(manifest.size)
        self._view.write_event(
            "checkpoint", f"checkpoint {manifest.checkpoint} committed at step {manifest.step} ({size})"
        )
        self._kept.add(manifest)

    def _describe(self, name: str, step: int, pending: _Pending) -> Manifest:
        attempt = self._view.current_attempt()
        return Manifest(
            checkpoint=name,
            job_id=self._job_id,
            step=step,
            attempt=attempt.number,
            world_size=attempt.num_devices,
            num_nodes=attempt.num_nodes,
            created_unix_s=time.time(),
            created_by=self._created_by,
            files=tuple(file.as_stored() for file in pending.plan or ()),
            metrics=pending.metrics,
        )
