"""periflow-ray: run pf-template.yml training jobs on your own Ray cluster.

``import periflow_ray as pf`` in a training script gives PeriFlow's SDK: ``pf.init``, ``pf.train_step``,
``pf.metric``, ``pf.upload_checkpoint``, ``pf.is_emergency_save``, ``pf.resumed_step``. ``periflow_ray.TorchTrainer``
runs a Python function as a job and imports Ray only when it is used; ``periflow_ray.KeepBest`` says which of its
checkpoints is never deleted. ``periflow_ray.sweep`` searches for the best hyperparameters of such a function or of a
template, and ``periflow_ray.trainable`` makes a trial of it for a ``tune.Tuner``. ``periflow_ray.dataset`` opens a
dataset by its name; ``periflow_ray.resumable_sampler`` goes on in the middle of an epoch and imports torch only when it
is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from periflow_ray.errors import PeriFlowError, PeriflowRayError
from periflow_ray.sdk import (
    end_step,
    hparams,
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

if TYPE_CHECKING:
    from periflow_ray.dataset_handle import dataset
    from periflow_ray.resumable import resumable_sampler
    from periflow_ray.spec import KeepBest
    from periflow_ray.torch_trainer import TorchTrainer
    from periflow_ray.tuning import sweep, trainable

__version__ = "0.1.0"

__all__ = [
    "KeepBest",
    "PeriFlowError",
    "PeriflowRayError",
    "TorchTrainer",
    "dataset",
    "end_step",
    "hparams",
    "init",
    "is_emergency_save",
    "is_initialized",
    "latest_checkpoint_dir",
    "metric",
    "resumable_sampler",
    "resumed_step",
    "start_step",
    "sweep",
    "train_step",
    "trainable",
    "upload_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name == "TorchTrainer":
        from periflow_ray.torch_trainer import TorchTrainer

        return TorchTrainer
    if name in ("sweep", "trainable"):
        from periflow_ray import tuning

        return getattr(tuning, name)
    if name == "KeepBest":
        from periflow_ray.spec import KeepBest

        return KeepBest
    if name == "dataset":
        from periflow_ray.dataset_handle import dataset

        return dataset
    if name == "resumable_sampler":
        from periflow_ray.resumable import resumable_sampler

        return resumable_sampler
    raise AttributeError(f"module 'periflow_ray' has no attribute {name!r}")
