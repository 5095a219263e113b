"""What ``TorchTrainer.fit`` returns: Ray's result, with the job's own checkpoints and metrics in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import ray.train

from periflow_ray.runtime.ray_train.workers import as_ray_checkpoint
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints.retention import BestRule, rank_by
from periflow_ray.store.root import StorageRoot


@dataclass(frozen=True)
class RankResult:
    """What a rank's worker returns.

    Args:
        value: what the function returned.
        reported_metrics: what it gave to ``ray.train.report`` last; None if it did not.
    """

    value: Any
    reported_metrics: Mapping[str, Any] | None


def describe_result(
    result: ray.train.Result, root: StorageRoot, job_id: int, score: BestRule | None
) -> ray.train.Result:
    """Ray's result of a run whose workers return a ``RankResult``, as the job's record has it.

    Args:
        score: by which the best checkpoint is the last of ``best_checkpoints``; None for the newest one.
    """
    returned: RankResult = result.return_value
    kept = checkpoints.list_committed(root, job_id)
    found = [
        (as_ray_checkpoint(root, job_id, one.checkpoint), {**_plain(one.metrics), "step": one.step}) for one in kept
    ]
    checkpoint, metrics = found[-1] if found else (None, None)
    if score is not None:
        order = [one.checkpoint for one in rank_by(kept, score)]
        places = [order.index(one.checkpoint) if one.checkpoint in order else -1 for one in kept]
        found = [pair for _, pair in sorted(zip(places, found, strict=True), key=lambda placed: placed[0])]
    return dataclasses.replace(
        result,
        metrics=metrics if returned.reported_metrics is None else dict(returned.reported_metrics),
        checkpoint=checkpoint,
        best_checkpoints=found,
        metrics_dataframe=pd.DataFrame([one for _, one in found]) if found else None,
        return_value=returned.value,
    )


def _plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float | str)}
