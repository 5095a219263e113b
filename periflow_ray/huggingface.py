"""Hugging Face ``transformers.Trainer`` in a job.

from periflow_ray.huggingface import PeriFlowCallback, latest_checkpoint

trainer = Trainer(model, TrainingArguments(output_dir=os.environ["CKPT_DIR"]), callbacks=[PeriFlowCallback()])
trainer.train(resume_from_checkpoint=latest_checkpoint())
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import periflow_ray as pf
from periflow_ray.sdk.beginning import refuse_to_begin_anew

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as err:
    raise ModuleNotFoundError(
        f"periflow_ray.huggingface needs {err.name}: pip install 'periflow-ray[huggingface]'", name=err.name
    ) from err

logger = logging.getLogger("periflow_ray")


class PeriFlowCallback(TrainerCallback):  # type: ignore[misc]
    """Connects a ``transformers.Trainer`` with the job; one optimizer step is one step.

    Calls ``pf.init`` unless the script has. Sends every number that the trainer logs, with ``iteration`` (its
    ``global_step``), so ``logging_steps`` sets how often. Uploads each checkpoint that the trainer saves, which must
    be in ``CKPT_DIR``: set ``output_dir`` to it. Makes the trainer save when a machine is about to be taken away.

    In a trial of a sweep, the trial's parameters are the trainer's ``state.trial_params``, and are in what it sends to
    TensorBoard and to Weights & Biases (``report_to``).
    """

    def __init__(self) -> None:
        self._is_in_step = False
        self._is_save_announced = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._is_in_step = False
        _relocate_best_checkpoint(args, state)
        if hparams := pf.hparams():
            state.trial_params = hparams
            if state.is_world_process_zero:
                self._tell_reporters(hparams)
        if not pf.is_initialized():
            # A restarted job whose training was already complete has nothing to count.
            is_complete = state.max_steps <= pf.resumed_step()
            if state.global_step == 0 and state.max_steps > 0:
                refuse_to_begin_anew("this training has loaded no checkpoint (resume_from_checkpoint)")
            pf.init(None if is_complete else state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end_open_step()
        pf.start_step()
        self._is_in_step = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end_open_step()
        was_announced, self._is_save_announced = self._is_save_announced, pf.is_emergency_save()
        if self._is_save_announced and not was_announced:
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        numbers = {
            name: value
            for name, value in (logs or {}).items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        if numbers and pf.is_initialized():
            pf.metric({"iteration": state.global_step, **numbers})

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if pf.is_initialized():
            pf.upload_checkpoint()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end_open_step()

    def _tell_reporters(self, hparams: Mapping[str, Any]) -> None:
        """Give a trial's parameters to the trainer's own callbacks, which have begun by now: they come first."""
        for callback in self._find_others():
            if getattr(callback, "tb_writer", None) is not None:
                _write_hparams(callback.tb_writer, hparams)
        run = getattr(sys.modules.get("wandb"), "run", None)
        if run is not None:
            run.config.update(dict(hparams), allow_val_change=True)

    def _find_others(self) -> list[TrainerCallback]:
        """The trainer's other callbacks. Nothing that it gives to a callback leads to them, so look who holds this."""
        lists = (each for each in gc.get_referrers(self) if isinstance(each, list))
        found = {id(item): item for each in lists for item in each if isinstance(item, TrainerCallback)}
        return [callback for callback in found.values() if callback is not self]

    def _end_open_step(self) -> None:
        if self._is_in_step:
            self._is_in_step = False
            pf.end_step()


def _write_hparams(writer: Any, hparams: Mapping[str, Any]) -> None:
    """For TensorBoard's tab of hyperparameters, by a ``SummaryWriter`` of torch or of tensorboardX."""
    package = type(writer).__module__.rpartition(".")[0]
    summary = importlib.import_module(f"{package}.summary")
    for each in summary.hparams(dict(hparams), {}):
        writer._get_file_writer().add_summary(each)


def _relocate_best_checkpoint(args: Any, state: Any) -> None:
    """Let a resumed training know its best checkpoint where it is now.

    It knows its path of then, and the output folder has another one on another machine, for another user and in another
    job. A checkpoint that is not found is neither kept nor loaded at the end, and its score still beats later ones.
    """
    names = [Path(state.best_model_checkpoint).name] if state.best_model_checkpoint else []
    # transformers 5 has forgotten a path that is not there, but not the step.
    if getattr(state, "best_global_step", None):
        names.append(f"checkpoint-{state.best_global_step}")
    for name in names:
        path = os.path.join(args.output_dir, name)
        if os.path.isdir(path):
            state.best_model_checkpoint = path
            return


def latest_checkpoint(directory: str | os.PathLike[str] | None = None) -> str | None:
    """Find the newest complete ``checkpoint-<step>``, for ``trainer.train(resume_from_checkpoint=...)``.

    Args:
        directory: where to look; default the job's output checkpoint directory, ``CKPT_DIR``.
    Returns:
        Its path, or None if there is none. An incomplete one is passed over with a warning.
    """
    directory = directory or os.environ.get("CKPT_DIR")
    if not directory:
        return None
    steps_of_paths = {}
    for path in Path(directory).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and path.is_dir():
            steps_of_paths[path] = int(match[1])
    for path in sorted(steps_of_paths, key=steps_of_paths.__getitem__, reverse=True):
        try:
            # transformers writes this file last.
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError) as err:
            logger.warning("periflow-ray: cannot resume from %s (%s); looking for an older one.", path, err)
            continue
        return str(path)
    return None
