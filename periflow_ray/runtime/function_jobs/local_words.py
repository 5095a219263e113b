"""What ``ray.train``'s calls mean in a rank that Ray Train did not start: that of a function which is a command."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist

from periflow_ray.errors import UsageError
from periflow_ray.runtime.function_jobs.ray_words import bring, flatten, is_local, refuse_foreign
from periflow_ray.runtime.ray_private import LocalTrainFnUtils
from periflow_ray.sdk import session


class LocalWords(LocalTrainFnUtils):  # type: ignore[misc]
    """Answers them by the SDK and torch's process group; what is not here Ray's local mode answers.

    ``is_distributed`` stays its own False: true would let Ray ask a worker of its own for the devices.
    """

    def __init__(self, experiment_name: str) -> None:
        names = {
            "world_size": "WORLD_SIZE",
            "world_rank": "RANK",
            "local_rank": "LOCAL_RANK",
            "local_world_size": "LOCAL_WORLD_SIZE",
            "node_rank": "NODE_RANK",
        }
        places = {name: int(os.environ[variable]) for name, variable in names.items()}
        super().__init__(experiment_name=experiment_name, **places)
        self._is_first_here = places["local_rank"] == 0
        self._output_dir = Path(os.environ["CKPT_DIR"])
        self._has_checkpoint = os.environ["PROCESSED_ITERS"] != "0"
        self._counts_steps = False

    def report(
        self,
        metrics: dict[str, Any],
        checkpoint: ray.train.Checkpoint | None = None,
        checkpoint_dir_name: str | None = None,
        checkpoint_upload_mode: Any = None,
        delete_local_checkpoint_after_upload: bool | None = None,
        checkpoint_upload_fn: Callable[..., Any] | None = None,
        validation: Any = False,
    ) -> None:
        """Record metrics, and save a checkpoint of the files that any of the ranks brings; see ``RayWords.report``.

        Collective: call on all ranks.
        """
        refuse_foreign(checkpoint_upload_fn, validation)
        if not session.is_initialized():
            session.init()
            self._counts_steps = True
        if self._counts_steps:
            session.start_step()
        session.metric(dict(flatten(metrics)))
        if self._counts_steps:
            session.end_step()
        if self._is_any(checkpoint is not None):
            self._save(checkpoint)
        if delete_local_checkpoint_after_upload is None:
            delete_local_checkpoint_after_upload = checkpoint_upload_mode == ray.train.CheckpointUploadMode.ASYNC
        if checkpoint is not None and delete_local_checkpoint_after_upload and is_local(checkpoint):
            shutil.rmtree(checkpoint.path, ignore_errors=True)

    def get_checkpoint(self) -> ray.train.Checkpoint | None:
        """The job's newest checkpoint, which is in the output folder."""
        return ray.train.Checkpoint(str(self._output_dir)) if self._has_checkpoint else None

    def get_dataset_shard(self, dataset_info: Any) -> Any:
        """There are no Ray Data datasets here."""
        raise UsageError(
            "ray.train.get_dataset_shard: a trial of a sweep has no datasets; read the data in the function."
        )

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier()

    def broadcast_from_rank_zero(self, data: Any) -> Any:
        """What rank 0 has."""
        box = [data]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def _is_any(self, value: bool) -> bool:
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return any(values)

    def _save(self, checkpoint: ray.train.Checkpoint | None) -> None:
        # Aside first: what is reported may be the output folder itself, or lie in it.
        staged = self._output_dir.with_name(f"{self._output_dir.name}.reported")
        if self._is_first_here:
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir()
        dist.barrier()
        if checkpoint is not None:
            bring(checkpoint, staged)
        dist.barrier()
        if self._is_first_here:
            # The files of the report are the checkpoint, and nothing of the one before.
            for path in self._output_dir.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            for path in staged.iterdir():
                path.rename(self._output_dir / path.name)
        dist.barrier()
        # One that is asked for because a machine goes is this one.
        session.is_emergency_save()
        session.upload_checkpoint()
        self._has_checkpoint = True
