"""Lightning checkpoints in a job: where they are written, that they are uploaded, and which one to resume from."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import periflow_ray as pf
from periflow_ray.lightning.flavour import has_class_named, pl
from periflow_ray.sdk.beginning import refuse_to_begin_anew

logger = logging.getLogger("periflow_ray")

EMERGENCY_FILE_NAME = "emergency.ckpt"
AsyncCheckpointIO = pl.plugins.io.AsyncCheckpointIO
# In a checkpoint: which ``fit`` of the script saved it, the first being 1. What says nothing is of the first.
FIT_KEY = "periflow_fit"
# In a checkpoint: where ``CKPT_DIR`` was, as the variable named it and with its links resolved.
_CHECKPOINT_DIR_KEY = "periflow_ckpt_dir"


class _Fits:
    """How many ``fit``s this process has begun."""

    num_begun = 0


def begin_fit() -> None:
    """A ``fit`` of this process begins."""
    _Fits.num_begun += 1


def number_of_fit() -> int:
    """Which ``fit`` of this process is under way; the first is 1."""
    return _Fits.num_begun


def latest_checkpoint(directory: str | os.PathLike[str] | None = None) -> Path | None:
    """Find the checkpoint that is furthest in the training, for ``trainer.fit(model, ckpt_path=...)``.

    Reads every ``*.ckpt`` below the directory (the tensors stay on disk) and passes over those that training cannot
    resume from, with a warning: cut short, or saved with weights only.

    Args:
        directory: where to look; default the job's output checkpoint directory, ``CKPT_DIR``.
    Returns:
        Its path, or None if there is none.
    """
    directory = directory or os.environ.get("CKPT_DIR")
    if not directory:
        return None
    found = _find_checkpoints(directory)
    return max(found)[1] if found else None


def _find_checkpoints(directory: str | os.PathLike[str]) -> list[tuple[_Progress, Path]]:
    found = []
    for path in sorted(Path(directory).rglob("*.ckpt")):
        try:
            found.append((_read_progress(path), path))
        except Exception as err:  # A damaged file can raise anything from zipfile, pickle or torch.
            logger.warning("periflow-ray: cannot resume from %s (%s); looking for another.", path, err)
    return found


def make_resume_options(ckpt_path: Any, weights_only: bool | None) -> dict[str, Any]:
    """Build the keyword arguments of the next ``fit``: as the user gave them, else what a job that resumes has.

    That is the newest checkpoint of the same ``fit`` of the script: folds, or phases, do not go on from each other.

    Raises:
        PeriFlowError: the job resumes, and there is none.
    """
    if ckpt_path is None and pf.resumed_step() > 0:
        ckpt_path = _choose_checkpoint(number_of_fit() + 1)
        if (
            ckpt_path is not None
            and weights_only is None
            and "weights_only" in inspect.signature(pl.Trainer.fit).parameters
        ):
            weights_only = False  # The job's own file: hyperparameters of any class may be in it.
    # Older Lightning 2 has no weights_only, and loads as if it were False.
    return {"ckpt_path": ckpt_path} if weights_only is None else {"ckpt_path": ckpt_path, "weights_only": weights_only}


def _choose_checkpoint(fit: int) -> Path | None:
    """What a ``fit`` of a script goes on from; None if it had not begun when the job was interrupted."""
    directory = os.environ.get("CKPT_DIR")
    found = _find_checkpoints(directory) if directory else []
    if not found:
        refuse_to_begin_anew(f"there is no usable Lightning checkpoint in {directory or 'CKPT_DIR, which is not set'}")
        return None
    own = [(progress, path) for progress, path in found if progress[0] == fit]
    if own:
        return max(own)[1]
    interrupted = max(progress[0] for progress, _ in found)
    if fit < interrupted:
        refuse_to_begin_anew(
            f"it was interrupted in fit number {interrupted} of the script, and of fit number {fit}, which was "
            f"complete, there is no checkpoint in {directory}"
        )
    return None


def use_job_checkpoint_dir(trainer: Any) -> None:
    """Let every ``ModelCheckpoint`` without a ``dirpath`` write into ``CKPT_DIR``, if that is set."""
    directory = os.environ.get("CKPT_DIR")
    if not directory:
        return
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, pl.callbacks.ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = os.path.realpath(directory)


def let_config_be_saved_again(trainer: Any) -> None:
    """In a job, let the ``SaveConfigCallback`` of ``LightningCLI`` write over what an earlier attempt wrote.

    It refuses to, and so ends a training that is started again, where the logger makes no new directory.
    """
    if os.environ.get("PERIFLOW_ENABLED") != "1":
        return
    for callback in trainer.callbacks:
        if has_class_named(callback, "SaveConfigCallback"):
            callback.overwrite = True


def note_checkpoint_dir(checkpoint: dict[str, Any]) -> None:
    """Write into a checkpoint where ``CKPT_DIR`` is, for ``relocate_callback_states``."""
    if directory := os.environ.get("CKPT_DIR"):
        checkpoint[_CHECKPOINT_DIR_KEY] = [directory, os.path.realpath(directory)]


def relocate_callback_states(checkpoint: dict[str, Any]) -> None:
    """Let paths below the ``CKPT_DIR`` of then, in the states of the callbacks, be paths below the one of now.

    It has another path on another machine, for another user and in another job. ``ModelCheckpoint`` would forget which
    files are the best ones, and neither replace nor delete them.
    """
    directory = os.environ.get("CKPT_DIR")
    noted = checkpoint.get(_CHECKPOINT_DIR_KEY)
    if not directory or not noted:
        return
    moves = dict(zip(noted, [directory, os.path.realpath(directory)], strict=True))
    checkpoint["callbacks"] = _move_paths(checkpoint["callbacks"], moves)


def _move_paths(state: Any, moves: Mapping[str, str]) -> Any:
    """The same state with each text that is a path in one of the old directories in the new one."""
    if isinstance(state, str):
        for old, new in moves.items():
            if state == old or state.startswith(old.rstrip("/") + "/"):
                return new.rstrip("/") + state[len(old.rstrip("/")) :]
        return state
    if type(state) is dict:
        return {_move_paths(key, moves): _move_paths(value, moves) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(_move_paths(value, moves) for value in state)
    return state


def make_emergency_path(trainer: Any) -> str:
    """Path of the emergency checkpoint: in ``CKPT_DIR``, else beside the trainer's other checkpoints."""
    dirpaths = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
    directories = [os.environ.get("CKPT_DIR"), *dirpaths, trainer.default_root_dir]
    return os.path.join(next(directory for directory in directories if directory), EMERGENCY_FILE_NAME)


def upload_after_saving(trainer: Any) -> None:
    """Make this trainer's ``save_checkpoint`` upload afterwards, unless its class or an earlier call does so."""
    if has_class_named(trainer, "PeriFlowTrainer") or "save_checkpoint" in vars(trainer):
        return
    save_checkpoint = trainer.save_checkpoint

    @functools.wraps(save_checkpoint)
    def save_and_upload(*args: Any, **kwargs: Any) -> None:
        save_checkpoint(*args, **kwargs)
        upload_if_initialized(trainer)

    trainer.save_checkpoint = save_and_upload


def upload_if_initialized(trainer: Any) -> None:
    """Upload ``CKPT_DIR``. Collective: call on all ranks. Nothing outside ``fit``, where there is no session yet."""
    if pf.is_initialized():
        _wait_for_writes(trainer.strategy.checkpoint_io)
        pf.upload_checkpoint()


def _wait_for_writes(checkpoint_io: Any) -> None:
    """Wait until a checkpoint that is written in the background is there; raises what went wrong with it."""
    while checkpoint_io is not None:
        if isinstance(checkpoint_io, AsyncCheckpointIO):
            # It begins anew with the next checkpoint.
            checkpoint_io.teardown()
        checkpoint_io = getattr(checkpoint_io, "checkpoint_io", None)


_Progress = tuple[int, int, int, int, int]


def _read_progress(path: Path) -> _Progress:
    """How far a checkpoint is: fit, optimizer steps, batches, finished epochs, and when it was written.

    Raises:
        ValueError: training cannot resume from it.
    """
    file = _find_shared_state(path) if path.is_dir() else path
    checkpoint = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
    if "lr_schedulers" not in checkpoint or "loops" not in checkpoint:
        raise ValueError("it holds weights only, or is not Lightning's")
    fit_loop = checkpoint["loops"]["fit_loop"]
    num_batches = fit_loop["epoch_loop.batch_progress"]["total"]["ready"]
    num_epochs = fit_loop["epoch_progress"]["total"]["processed"]
    fit = int(checkpoint.get(FIT_KEY, 1))
    return fit, checkpoint["global_step"], num_batches, num_epochs, path.stat().st_mtime_ns


def _find_shared_state(directory: Path) -> Path:
    """The file of a sharded checkpoint that has all but the model's and the optimizers' state.

    Raises:
        FileNotFoundError: there is none.
    """
    # FSDP's, and DeepSpeed's, whose every rank's file has it.
    for file in (directory / "meta.pt", *sorted(directory.glob("checkpoint/*model_states.pt"))):
        if file.is_file():
            return file
    raise FileNotFoundError(f"neither meta.pt nor DeepSpeed's checkpoint/*model_states.pt is in {directory}")
