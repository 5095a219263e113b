"""What user code calls: ``init``, ``start_step``, ``end_step``, ``train_step``, ``metric`` and the rest.

Imports neither Ray nor torch nor click, so that a training script pays nothing for it.
"""

from periflow_ray.sdk.hparams import hparams
from periflow_ray.sdk.session import (
    end_step,
    init,
    is_emergency_save,
    is_initialized,
    latest_checkpoint_dir,
    metric,
    resumed_step,
    start_step,
    train_step,
    upload_checkpoint,
)

__all__ = [
    "end_step",
    "hparams",
    "init",
    "is_emergency_save",
    "is_initialized",
    "latest_checkpoint_dir",
    "metric",
    "resumed_step",
    "start_step",
    "train_step",
    "upload_checkpoint",
]
