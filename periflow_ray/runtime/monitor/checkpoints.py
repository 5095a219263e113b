"""Where the nodes of an attempt agree on checkpoints: who takes part, who uploads what, when it is committed.

No coroutine waits for the storage while others need what it knows, so that a slow one does not hold up the ranks'
reports.

Long because it is one state machine: a checkpoint is announced, described, brought, committed or given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from periflow_ray.errors import DocumentError, NotFoundError, StorageError
from periflow_ray.jobs import read_record
from periflow_ray.runtime.monitor.agreed_save import AgreedSave
from periflow_ray.runtime.monitor.context import JobContext
from periflow_ray.runtime.monitor.contract import Assignment, RestoreVerdict, SnapshotId
from periflow_ray.runtime.monitor.kept_checkpoints import KeptCheckpoints
from periflow_ray.runtime.monitor.pending_checkpoint import PendingCheckpoint
from periflow_ray.runtime.monitor.restore_agreement import RestoreAgreement
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints import Content, Manifest, Plan
from periflow_ray.store.patience import Patience
from periflow_ray.store.size_text import format_size

# How long a failed attempt lasts for the sake of a checkpoint that is almost there.
UPLOADS_TIMEOUT_S = 20.0
_CUT_SHORT = "the attempt ended before all of it was uploaded"
# An older one with files is worth more.
_EMPTY = "no node has a file in output_checkpoint_dir; write there, and to the end, before pf.upload_checkpoint()"


class Checkpoints:
    """The checkpoints of one attempt after the other.

    Args:
        read_metrics: gives the newest value of each metric, for the manifest.
    """

    def __init__(self, context: JobContext, read_metrics: Callable[[], Mapping[str, object]]) -> None:
        self._context = context
        self._read_metrics = read_metrics
        self._restores = RestoreAgreement(context)
        self._kept = KeptCheckpoints(context.root, context.job_id, context.rules.retention, context.write_event)
        self._pending: dict[SnapshotId, PendingCheckpoint] = {}
        # Of settled ones: None if committed, else why not. What a node is told again when its connection broke.
        self._outcomes: dict[SnapshotId, str | None] = {}
        self._naming = asyncio.Lock()
        self._chosen_names: set[str] = set()
        self._failed_nodes: set[int] = set()
        self._agreed = AgreedSave()
        self._created_by: str | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self.num_commits = 0
        """Committed in this attempt."""
        self.newest_commit: Manifest | None = None
        """The one that was committed last in this attempt."""
        self.save_time_s = 0.0
        """Seconds from the first snapshot of the newest committed checkpoint to its commit."""

    @property
    def newest_step(self) -> int:
        """Where the job would resume now; 0 without a checkpoint."""
        newest = self._kept.newest or self._context.attempt.checkpoint
        return newest.step if newest is not None else 0

    @property
    def has_pending(self) -> bool:
        """Whether a checkpoint is on its way."""
        return bool(self._pending)

    @property
    def agreed(self) -> AgreedSave:
        """What became of the checkpoint that ``require_all_nodes`` asked for."""
        return self._agreed

    async def begin_attempt(self, patience: Patience) -> Manifest | None:
        """Forget what the attempt before left unsettled, after its last commit; returns what to resume from.

        Args:
            patience: with a storage that is away.
        """
        for pending in list(self._pending.values()):
            if pending.settling is not None:
                await pending.is_written.wait()
            pending.abandon(_CUT_SHORT)
        self._pending = {}
        self._outcomes = {}
        self._chosen_names = set()
        self._failed_nodes = set()
        self._agreed = AgreedSave()
        self.num_commits, self.newest_commit = 0, None
        self._context.checkpoints.tell()
        newest, committed = await asyncio.to_thread(patience.insist, self._look_at_storage)
        # Another job's has no files here that the next one may copy.
        is_own = newest is not None and newest.job_id == self._context.job_id
        self._kept.begin_attempt(newest if is_own else None, committed)
        return newest

    def _look_at_storage(self) -> tuple[Manifest | None, Sequence[str]]:
        """The checkpoint to resume from, and the names of all; what nobody committed is deleted."""
        root, job_id = self._context.root, self._context.job_id
        # Where it seems to be gone, its checkpoints do as well: the job must not begin anew.
        self._context.require_job()
        if self._created_by is None:
            # A manifest without its author is worth more than an attempt that does not begin.
            with contextlib.suppress(NotFoundError, DocumentError):
                self._created_by = read_record(root, job_id).created_by
        swept = checkpoints.sweep(root, job_id, _CUT_SHORT, self._kept.names)
        return self._restores.find_checkpoint(), swept.committed

    # Restoring.

    async def settle_restore(self, member: int, name: str, problem: str | None) -> RestoreVerdict:
        """Take in what became of a member's restore and wait for the others."""
        verdict = await self._restores.settle(member, name, problem)
        if not verdict.is_agreed:
            # What cannot be restored is no source of copies, not where the job would resume, and not one to keep.
            self._kept.forget(name)
            self._kept.newest = verdict.checkpoint
        return verdict

    # Saving.

    def announce(self, node_rank: int, snapshot: SnapshotId) -> None:
        """A node takes its snapshot; ``begin`` or ``withdraw`` follows."""
        # Even of a snapshot that others saved in vain before: now this node is at its step.
        self.see(snapshot)
        if snapshot in self._outcomes:
            return
        pending = self._pending_of(snapshot)
        if node_rank in pending.announced_nodes:
            # Said twice; since then it may have described its files, and its metrics are those of later steps.
            return
        pending.announced_nodes.add(node_rank)
        if not pending.is_planned:
            pending.awaited_nodes.add(node_rank)
        if node_rank == 0:
            # Rank 0 is on node 0 and has just reported; later on its metrics are those of later steps.
            pending.metrics = dict(self._read_metrics())

    def withdraw(self, snapshot: SnapshotId, reason: str) -> None:
        """A node that announced itself will not upload; nobody's upload is needed then."""
        if snapshot in self._outcomes:
            return
        pending = self._pending_of(snapshot)
        if not pending.contents:
            if pending.error is None:
                self._tell_failed(pending, reason)
            pending.abandon(reason)
            # No node will come to settle it.
            self._settled(pending)
            return
        pending.abandon(reason)
        self._context.checkpoints.tell()

    async def begin(self, node_rank: int, snapshot: SnapshotId, content: Content) -> Assignment:
        """Describe a node's snapshot; returns the checkpoint's name and what this node has to bring."""
        if snapshot in self._outcomes:
            return Assignment("", ())
        pending = self._pending_of(snapshot)
        pending.contents[node_rank] = content
        if pending.name is None:
            pending.name = asyncio.create_task(self._open(snapshot[0]))
        self._see_node(pending, node_rank)
        await self._context.checkpoints.wait_for(lambda: pending.is_planned)
        try:
            name = await asyncio.shield(pending.name)
        except Exception as err:
            pending.abandon(_describe(err))
            return Assignment("", ())
        return Assignment(name, pending.files_of(node_rank))

    async def finish(self, node_rank: int, snapshot: SnapshotId, error: str | None) -> str | None:
        """A node's files are there (or its upload failed); None once the checkpoint is committed, else why not."""
        if snapshot in self._outcomes:
            return self._outcomes[snapshot]
        pending = self._pending_of(snapshot)
        if error is not None:
            pending.abandon(error)
        self._finish_part(pending, node_rank)
        await self._context.checkpoints.wait_for(lambda: self._pending.get(snapshot) is not pending)
        return pending.error

    def give_up(self, node_rank: int, snapshot: SnapshotId, reason: str) -> None:
        """A node could neither finish nor withdraw its part, and will not come to it again: nobody waits for it."""
        if snapshot in self._outcomes:
            return
        pending = self._pending_of(snapshot)
        pending.abandon(reason)
        self._finish_part(pending, node_rank)

    async def wait_for_uploads(self, dead_nodes: Collection[int] = ()) -> None:
        """Wait until what is on its way is settled, but not for nodes that died, and not without end."""
        await self._context.checkpoints.wait_for(
            lambda: not any(pending.is_coming(dead_nodes) for pending in self._pending.values()), UPLOADS_TIMEOUT_S
        )

    async def has_committed(self, snapshot: SnapshotId) -> bool:
        """Whether this attempt has saved this snapshot; waits for a commit under way."""
        await self._context.checkpoints.wait_for(
            lambda: snapshot not in self._pending or not self._pending[snapshot].is_committing
        )
        return snapshot in self._outcomes and self._outcomes[snapshot] is None

    def drop_node(self, node_rank: int) -> None:
        """A node has failed or was ended: without its files a checkpoint would be half of one."""
        self._failed_nodes.add(node_rank)
        for pending in self._pending.values():
            self._abandon_without_failed_nodes(pending)
        self._context.checkpoints.tell()

    def end_node(self, node_rank: int) -> None:
        """All members of a node have left: whatever it has not settled by now, it will not."""
        for snapshot, pending in list(self._pending.items()):
            if pending.waits_for(node_rank):
                self.give_up(node_rank, snapshot, f"node {node_rank} left before its files were uploaded")

    def see_progress(self, node_rank: int) -> None:
        """A node's ranks are further, or it has left: some checkpoints may not have to wait for it any more."""
        for pending in self._pending.values():
            if node_rank in pending.awaited_nodes:
                self._see_node(pending, node_rank)

    def find_waits(self) -> Iterator[tuple[SnapshotId, str, set[int]]]:
        """Checkpoints that wait, for what, and for which nodes; without nodes it is the storage."""
        for snapshot, pending in self._pending.items():
            if pending.settling is not None:
                yield snapshot, "record it", set()
            elif pending.error is None and pending.contents and not pending.is_planned:
                # One without a session is told as such.
                nodes = {node for node in pending.awaited_nodes if self._context.attempt.trains_on(node)}
                if nodes:
                    yield snapshot, "save at this step", nodes
            elif pending.is_planned and pending.finished_nodes:
                yield snapshot, "upload its files", set(pending.contents) - pending.finished_nodes

    # The save that was announced to all ranks.

    def require_all_nodes(self, first_step: int) -> None:
        """From now on, a checkpoint at ``first_step`` or later is committed only if every node saved it at one step.

        Without it a node whose ranks are beyond the step is taken for one that does not save.
        """
        self._agreed.require(first_step, [key for key, pending in self._pending.items() if pending.error is None])

    def make_agreed_void(self, reason: str) -> None:
        """A rank heard of the agreed step too late: discard what nodes save for it, even if it arrives later."""
        self._agreed.make_void(reason)
        self._abandon_void()

    def check_agreed(self) -> None:
        """Make it void if a node is beyond the step at which another one saves: its files will not come."""
        attempt = self._context.attempt
        for snapshot, pending in list(self._pending.items()):
            if not self._agreed.is_asked_for(snapshot):
                continue
            absent = pending.awaited_nodes - pending.announced_nodes
            late = [node_rank for node_rank in absent if not attempt.may_still_save(node_rank, snapshot[0])]
            if late:
                self.make_agreed_void(f"node {min(late)} was beyond step {snapshot[0]} when it should have saved")

    def end_agreed(self, last_step: int, reason: str) -> None:
        """Ask for nothing any more: beyond this step the usual rules hold again."""
        self._agreed.end(last_step, reason)
        self._abandon_void()

    def see(self, snapshot: SnapshotId) -> None:
        """A rank has begun to save."""
        self._agreed.see(snapshot)
        self._abandon_void()

    async def close(self) -> None:
        """Wait for deletions under way."""
        await self._kept.close()

    def _pending_of(self, snapshot: SnapshotId) -> PendingCheckpoint:
        if snapshot not in self._pending:
            self._pending[snapshot] = PendingCheckpoint(snapshot, self._context.attempt.present_nodes())
            self._abandon_without_failed_nodes(self._pending[snapshot])
            self._abandon_void()
            for node_rank in list(self._pending[snapshot].awaited_nodes):
                self._see_node(self._pending[snapshot], node_rank)
        return self._pending[snapshot]

    def _see_node(self, pending: PendingCheckpoint, node_rank: int) -> None:
        """Wait for a node no longer if it will not come; with the last one it is known who brings what."""
        if not self._is_awaited(pending, node_rank):
            pending.awaited_nodes.discard(node_rank)
        if pending.contents and not pending.awaited_nodes and not pending.is_planned:
            restored = self._context.attempt.checkpoint
            pending.plan = checkpoints.merge_contents(pending.contents, self._kept.newest, restored)
        if pending.is_planned:
            self._context.checkpoints.tell()

    def _is_awaited(self, pending: PendingCheckpoint, node_rank: int) -> bool:
        attempt = self._context.attempt
        if node_rank in pending.contents or not attempt.is_present(node_rank):
            return False
        if node_rank in pending.announced_nodes:
            return True
        if attempt.lacks_session(node_rank):
            return False
        if self._agreed.is_asked_for(pending.snapshot):
            return True
        # A node whose ranks are all beyond the step will not come.
        return attempt.may_still_save(node_rank, pending.snapshot[0])

    def _abandon_void(self) -> None:
        for snapshot, pending in self._pending.items():
            reason = self._agreed.why_void(snapshot)
            if reason is not None:
                pending.is_void = True
                pending.abandon(reason)
        self._context.checkpoints.tell()

    def _abandon_without_failed_nodes(self, pending: PendingCheckpoint) -> None:
        missing = self._failed_nodes - set(pending.contents)
        if missing:
            pending.abandon(f"node {min(missing)} ended before its files were copied")

    def _finish_part(self, pending: PendingCheckpoint, node_rank: int) -> None:
        """A node has done, or given up, its part; with the last one it is decided what becomes of the checkpoint."""
        pending.finished_nodes.add(node_rank)
        if pending.settling is None and pending.finished_nodes >= set(pending.contents):
            pending.settling = asyncio.create_task(self._settle(pending))
        self._context.checkpoints.tell()

    async def _open(self, step: int) -> str:
        root, job_id = self._context.root, self._context.job_id
        async with self._naming:
            name = await asyncio.to_thread(checkpoints.choose_name, root, job_id, step, frozenset(self._chosen_names))
            self._chosen_names.add(name)
        await asyncio.to_thread(checkpoints.begin, root, job_id, name, step, self._context.attempt.number)
        return name

    async def _settle(self, pending: PendingCheckpoint) -> None:
        name: str | None = None
        try:
            if pending.name is not None:
                name = await pending.name
            plan = pending.plan or Plan([], [])
            if pending.error is None and not plan.files:
                pending.error = _EMPTY
            if name is not None and pending.error is None:
                pending.is_committing = True
                await self._commit(pending, self._describe(name, pending, plan))
        except Exception as err:
            # Whatever it was: those who wait for the checkpoint must hear of its end.
            pending.error = _describe(err)
        try:
            if pending.error is not None:
                await self._record_failure(pending, name, pending.error)
        finally:
            # Whatever cannot be told or recorded: members wait for this, and so does the next attempt.
            pending.is_written.set()
            self._settled(pending)

    async def _record_failure(self, pending: PendingCheckpoint, name: str | None, reason: str) -> None:
        self._tell_failed(pending, reason)
        if name is not None:
            # Where the storage does not even take this, the next attempt's sweep does it.
            with contextlib.suppress(OSError, StorageError):
                await asyncio.to_thread(checkpoints.mark_failed, self._context.root, self._context.job_id, name, reason)

    def _settled(self, pending: PendingCheckpoint) -> None:
        if self._pending.get(pending.snapshot) is pending:
            self._outcomes[pending.snapshot] = pending.error
            del self._pending[pending.snapshot]
        self._context.checkpoints.tell()
        self._context.reports.tell()

    async def _commit(self, pending: PendingCheckpoint, manifest: Manifest) -> None:
        await asyncio.to_thread(self._context.require_ownership)
        await asyncio.to_thread(checkpoints.commit, self._context.root, manifest)
        self.num_commits += 1
        self.newest_commit = manifest
        self.save_time_s = time.monotonic() - pending.began_s
        self._agreed.take_commit(pending.snapshot, manifest)
        size = format_size(manifest.size)
        self._context.write_event(
            "checkpoint", f"checkpoint {manifest.checkpoint} committed at step {manifest.step} ({size})"
        )
        self._kept.add(manifest)

    def _describe(self, name: str, pending: PendingCheckpoint, plan: Plan) -> Manifest:
        attempt = self._context.attempt
        return Manifest(
            checkpoint=name,
            job_id=self._context.job_id,
            step=pending.snapshot[0],
            attempt=attempt.number,
            world_size=attempt.num_devices,
            num_nodes=attempt.num_nodes,
            created_unix_s=time.time(),
            created_by=self._created_by,
            files=tuple(file.as_stored() for file in plan.files),
            entries=tuple(plan.entries),
            metrics=pending.metrics,
        )

    def _tell_failed(self, pending: PendingCheckpoint, reason: str) -> None:
        step = pending.snapshot[0]
        self._context.write_event("checkpoint_failed", f"checkpoint at step {step} was not saved: {reason}")
        if pending.is_void or self._agreed.is_void or not self._agreed.is_asked_for(pending.snapshot):
            return
        attempt = self._context.attempt
        if all(node in pending.nodes or attempt.lacks_session(node) for node in attempt.present_nodes()):
            self._agreed.take_failure(pending.snapshot)
        else:
            # Those that have not come yet may save for it at any other step, and then without the rest.
            self.make_agreed_void(reason)


def _describe(error: Exception) -> str:
    is_expected = isinstance(error, OSError | StorageError)
    return str(error) if is_expected else f"{type(error).__name__}: {error}"
