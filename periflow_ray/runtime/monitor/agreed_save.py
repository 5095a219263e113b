"""The rules for checkpoints while all nodes were asked for one at an agreed step. Pure: ``Checkpoints`` obeys them."""

from __future__ import annotations

from collections.abc import Collection

from periflow_ray.runtime.monitor.contract import SnapshotId
from periflow_ray.store.checkpoints import Manifest


class AgreedSave:
    """Tells the checkpoints that were asked for from others, and knows when they can be none.

    Asked for is one checkpoint of all nodes at one step. When that fails, because a rank heard of it too late, it is
    void: what nodes still bring for it counts for nothing, also while the next step is being agreed on. When all nodes
    came to its step and it could not be stored, it has failed, and any checkpoint after it will do.
    """

    def __init__(self) -> None:
        self._first_step: int | None = None
        self._begun_before: frozenset[SnapshotId] = frozenset()
        self._step: int | None = None
        self._void_steps: range | None = None
        self._void_reason = ""
        self.is_void = False
        self.has_failed = False
        self.saved: Manifest | None = None
        """The checkpoint that was asked for, once it is committed."""

    def require(self, first_step: int, begun_before: Collection[SnapshotId]) -> None:
        """Ask for a checkpoint at this step or a later one; those that were begun before are others."""
        if self._void_steps is not None:
            self._void_steps = range(self._void_steps.start, min(first_step, self._void_steps.stop))
        self._first_step = first_step
        self._begun_before = frozenset(begun_before)
        self._step, self.is_void, self.has_failed, self.saved = None, False, False, None

    def is_asked_for(self, snapshot: SnapshotId) -> bool:
        """Whether a checkpoint needs the files of all nodes."""
        return self._first_step is not None and snapshot[0] >= self._first_step and snapshot not in self._begun_before

    def see(self, snapshot: SnapshotId) -> None:
        """A node, or a rank, saves; nodes that save at different steps make all of it void."""
        if not self.is_asked_for(snapshot) or self.is_void:
            return
        if self._step is None:
            self._step = snapshot[0]
        elif self._step != snapshot[0]:
            first, second = sorted((self._step, snapshot[0]))
            self.make_void(f"nodes saved at different steps ({first}, {second})")

    def take_commit(self, snapshot: SnapshotId, manifest: Manifest) -> None:
        """A checkpoint is committed; one that was begun before will do, if its step does."""
        if self._first_step is not None and snapshot[0] >= self._first_step and self.why_void(snapshot) is None:
            self.saved = manifest

    def take_failure(self, snapshot: SnapshotId) -> None:
        """All nodes came to a checkpoint, which could not be stored; if it was asked for, another one is needed."""
        if self.is_asked_for(snapshot) and not self.is_void:
            self._step = None
            self.has_failed = True

    def make_void(self, reason: str) -> None:
        """Nothing that was asked for is going to be committed."""
        if self._first_step is None:
            return
        first_step = self._first_step if self._void_steps is None else min(self._first_step, self._void_steps.start)
        self._void_steps = range(first_step, _NO_LIMIT)
        self._void_reason = reason
        self.is_void = True

    def end(self, last_step: int, reason: str) -> None:
        """Ask for nothing any more; what nodes saved up to this step, because they were asked, is void."""
        self.make_void(reason)
        if self._void_steps is not None:
            self._void_steps = range(self._void_steps.start, last_step + 1)
        self._first_step = None

    def why_void(self, snapshot: SnapshotId) -> str | None:
        """Why a checkpoint must not be committed; None if it may be."""
        if self._void_steps is None or snapshot[0] not in self._void_steps or snapshot in self._begun_before:
            return None
        return self._void_reason


_NO_LIMIT = 1 << 62
