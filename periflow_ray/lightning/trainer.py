"""A Lightning ``Trainer`` that takes its devices from the job and resumes by itself."""

from __future__ import annotations

import os
from typing import Any

import torch

from periflow_ray.lightning.callback import PeriFlowCallback
from periflow_ray.lightning.checkpoints import (
    let_config_be_saved_again,
    make_resume_options,
    upload_if_initialized,
)
from periflow_ray.lightning.flavour import has_class_named, pl, refuse_other_flavour
from periflow_ray.lightning.job_options import fill_from_job


class PeriFlowTrainer(pl.Trainer):  # type: ignore[misc]
    """Lightning's ``Trainer``, with the job filled in.

    - ``PeriFlowCallback`` is added, unless ``callbacks`` has one (a hand-written class of that name counts).
    - ``save_checkpoint`` uploads afterwards.
    - In a job, ``devices``, ``num_nodes``, ``strategy`` and ``accelerator`` come from the job where you leave them
      out or at Lightning's default; ``python main.py`` once per node or per device, and ``torchrun ... main.py`` all
      work. So does ``LightningCLI(..., trainer_class=PeriFlowTrainer)``.
    - ``fit`` resumes a restarted job from the newest checkpoint in ``CKPT_DIR``, unless you give ``ckpt_path``.

    Args:
        options: Lightning's own, see ``Trainer``.
    """

    def __init__(self, **options: Any) -> None:
        options = fill_from_job(options, os.environ, num_gpus=torch.cuda.device_count())
        options["callbacks"] = _with_periflow_callback(options.get("callbacks"))
        super().__init__(**options)

    def fit(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: Any = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train, from the newest checkpoint in ``CKPT_DIR`` if the job was restarted.

        Model, optimizers, schedulers, callbacks, epoch and batch counters continue exactly. A checkpoint from the
        middle of an epoch continues with as many batches as that epoch has left; Lightning does not know where in
        the data it was, so those batches are the first ones of the data loader's order, unless the loader has
        ``state_dict`` and ``load_state_dict`` (torchdata's ``StatefulDataLoader``): then they are the right ones.
        Checkpoints from the end of an epoch have no such gap. Random number generators start anew.
        """
        refuse_other_flavour(model, pl.LightningModule)
        # That callback may be asked before ours.
        let_config_be_saved_again(self)
        resume_options = make_resume_options(ckpt_path, weights_only)
        super().fit(model, train_dataloaders, val_dataloaders, datamodule, **resume_options)

    def save_checkpoint(
        self, filepath: Any, weights_only: bool | None = None, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint and upload the output checkpoint directory. Collective: call on all ranks."""
        super().save_checkpoint(filepath, bool(weights_only), storage_options)
        upload_if_initialized(self)


def _with_periflow_callback(callbacks: Any) -> list[Any]:
    given = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks] if callbacks else []
    if any(has_class_named(callback, "PeriFlowCallback") for callback in given):
        return given
    # Last, so that an emergency checkpoint holds what the other callbacks did with the batch.
    return [*given, PeriFlowCallback()]
