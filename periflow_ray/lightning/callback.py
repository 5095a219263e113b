"""The Lightning callback that reports steps and metrics, uploads checkpoints and saves in an emergency."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

import periflow_ray as pf
from periflow_ray.lightning.checkpoints import (
    FIT_KEY,
    begin_fit,
    let_config_be_saved_again,
    make_emergency_path,
    note_checkpoint_dir,
    number_of_fit,
    relocate_callback_states,
    upload_after_saving,
    use_job_checkpoint_dir,
)
from periflow_ray.lightning.flavour import pl, refuse_other_flavour
from periflow_ray.lightning.total_steps import count_train_batches
from periflow_ray.sdk.beginning import refuse_to_begin_anew

logger = logging.getLogger("periflow_ray")


class PeriFlowCallback(pl.Callback):  # type: ignore[misc]
    """Connects a Lightning ``Trainer`` with the job; ``Trainer(callbacks=[PeriFlowCallback()])`` is all it takes.

    One training batch is one step. Calls ``pf.init`` unless the script has. Every step sends ``iteration`` (the
    trainer's ``global_step``), ``loss`` (as ``training_step`` returned it) and what the module logged since the last
    step. Checkpoints that ``ModelCheckpoint`` writes are uploaded, and go to ``CKPT_DIR`` if it has no ``dirpath``.

    When a machine is about to be taken away, all ranks save ``CKPT_DIR/emergency.ckpt`` at the same batch, in the
    middle of the epoch if need be; with gradient accumulation, at the next optimizer step, because a checkpoint does
    not hold half-gathered gradients.

    In a trial of a sweep, each logger of the trainer gets the trial's parameters beside those of the module.

    To resume, use ``PeriFlowTrainer``, or ``trainer.fit(model, ckpt_path=latest_checkpoint())``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_in_step = False
        self._is_save_announced = False
        self._is_save_due = False
        self._reported: dict[str, Any] = {}
        self._loggers_told: list[Any] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            refuse_other_flavour(trainer, pl.Trainer)
            begin_fit()
            let_config_be_saved_again(trainer)
            use_job_checkpoint_dir(trainer)
            upload_after_saving(trainer)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        # Before Lightning's own, of which TensorBoard would take the first alone.
        hparams = pf.hparams()
        if not hparams or not trainer.is_global_zero or not getattr(trainer, "enable_autolog_hparams", True):
            return
        own = _logged_hparams(trainer.datamodule) | _logged_hparams(pl_module)
        for logger_ in trainer.loggers:
            if logger_ not in self._loggers_told:
                self._loggers_told.append(logger_)
                logger_.log_hyperparams({**hparams, **own})

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[FIT_KEY] = number_of_fit()
        note_checkpoint_dir(checkpoint)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # Lightning calls it on all callbacks before it gives the first one its state.
        relocate_callback_states(checkpoint)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if pf.is_initialized():
            return
        total_train_steps = count_train_batches(trainer)
        if total_train_steps is not None and total_train_steps <= pf.resumed_step():
            logger.warning(
                "periflow-ray: this training has %d steps and the job resumes at step %d; progress is not shown.",
                total_train_steps,
                pf.resumed_step(),
            )
            total_train_steps = None
        # A later fit of the script may not have begun yet when the job was interrupted.
        if trainer.global_step == 0 and number_of_fit() == 1:
            refuse_to_begin_anew("this training has loaded no checkpoint (ckpt_path)")
        pf.init(total_train_steps)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._end_open_step()  # on_train_batch_end is left out when a hook returned -1 to skip the epoch's rest.
        pf.start_step()
        self._is_in_step = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        values = {"iteration": trainer.global_step}
        loss = _read_loss(outputs)
        if loss is not None:
            # Lightning divides the loss by the number of accumulated batches, except in manual optimization.
            is_divided = pl_module.automatic_optimization and trainer.accumulate_grad_batches > 1
            values["loss"] = loss * trainer.accumulate_grad_batches if is_divided else loss
        pf.metric({**values, **self._take_new_metrics(trainer)})
        self._end_open_step()
        self._save_if_emergency(trainer, batch_idx)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._report_new_metrics(trainer)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        # The last epoch's means: complete only now, after on_train_epoch_end of the module.
        self._report_new_metrics(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._end_open_step()
        self._report_new_metrics(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._end_open_step()

    def _end_open_step(self) -> None:
        if self._is_in_step:
            self._is_in_step = False
            pf.end_step()

    def _save_if_emergency(self, trainer: Any, batch_idx: int) -> None:
        was_announced, self._is_save_announced = self._is_save_announced, pf.is_emergency_save()
        if self._is_save_announced and not was_announced:
            self._is_save_due = True
        if not self._is_save_due:
            return
        has_stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if has_stepped:
            self._is_save_due = False
            trainer.save_checkpoint(make_emergency_path(trainer))

    def _report_new_metrics(self, trainer: Any) -> None:
        new_metrics = self._take_new_metrics(trainer)
        if new_metrics and pf.is_initialized():
            pf.metric({"iteration": trainer.global_step, **new_metrics})

    def _take_new_metrics(self, trainer: Any) -> dict[str, Any]:
        # Lightning makes a new tensor for every logged value. Its address tells whether there is a new one, without
        # reading the value back from the GPU: the SDK's sender does that off the step path. No address is used
        # again while the tensor reported last is kept.
        reported = self._reported
        new_metrics = {
            name: value
            for name, value in trainer.callback_metrics.items()
            if name not in reported or reported[name].data_ptr() != value.data_ptr()
        }
        reported.update(new_metrics)
        return new_metrics


def _logged_hparams(module: Any) -> dict[str, Any]:
    """What Lightning itself tells loggers of a module or a data module: what ``save_hyperparameters`` took."""
    if not getattr(module, "_log_hyperparams", False):
        return {}
    # Of LightningCLI's, which it leaves out, too.
    return {name: value for name, value in module.hparams_initial.items() if name != "_class_path"}


def _read_loss(outputs: Any) -> Any:
    """The loss in what ``training_step`` returned: a number or a detached tensor of one element, or None."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if isinstance(loss, torch.Tensor):
        return loss.detach() if loss.numel() == 1 else None
    return loss if isinstance(loss, (int, float)) else None
