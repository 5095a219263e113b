"""Which committed checkpoints a job no longer needs. Pure: it decides, others destroy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar

from periflow_ray.store.checkpoints.manifest import CheckpointSummary, Manifest

Checkpoint = TypeVar("Checkpoint", bound=Manifest | CheckpointSummary)


class BestRule(Protocol):
    """Keep the checkpoint whose metric is the lowest (``min``) or the highest (``max``), as ``KeepBest`` says."""

    @property
    def metric(self) -> str: ...

    @property
    def mode(self) -> Literal["min", "max"]: ...


def choose_expired(
    manifests: Sequence[Checkpoint],
    keep_last: int | None = None,
    keep_best: BestRule | None = None,
    num_best: int = 1,
) -> list[Checkpoint]:
    """The checkpoints that neither rule keeps, oldest first; never the newest one, which a restart needs.

    Args:
        manifests: all committed checkpoints of a job, or their summaries, oldest first.
        keep_last: keep this many of the newest.
        keep_best: keep the best by a metric; of equal ones the newest. Without a checkpoint that has the metric
            nobody knows which is the best, so this rule alone then keeps all.
        num_best: how many ``keep_best`` keeps.
    Returns:
        What to destroy; nothing when both rules are None.
    """
    if keep_last is None and keep_best is None:
        return []
    best = [] if keep_best is None else rank_by(manifests, keep_best)[-num_best:]
    if keep_last is None and not best:
        return []
    newest = manifests[-max(1, keep_last or 1) :]
    kept = {manifest.checkpoint for manifest in (*newest, *best)}
    return [manifest for manifest in manifests if manifest.checkpoint not in kept]


def rank_by(manifests: Sequence[Checkpoint], rule: BestRule) -> list[Checkpoint]:
    """Those that have the metric, the best one last."""
    valued = []
    for index, manifest in enumerate(manifests):
        value = manifest.metrics.get(rule.metric)
        # A loss of NaN compares as neither better nor worse; it is never the best.
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value):
            valued.append((value if rule.mode == "max" else -value, index))
    return [manifests[index] for _, index in sorted(valued)]
