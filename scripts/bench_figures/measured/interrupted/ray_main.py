"""The same training with plain Ray Train.

ray_main.py MARKS_DIR STEP_TIME_S STEPS_PER_CHECKPOINT STORAGE_DIR POLL_INTERVAL_S
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import ray.train
from ray.train.torch import TorchTrainer


def train_loop(config):
    from training import Marks, Training

    rank = ray.train.get_context().get_world_rank()
    marks = Marks(config["marks_dir"], rank)
    marks.write("imported")
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        training = Training(None, config["step_time_s"])
    else:
        with checkpoint.as_directory() as directory:
            training = Training(Path(directory), config["step_time_s"])
    marks.write("ready")
    while True:
        training.make_step()
        marks.write(training.step)
        if training.step % config["steps_per_checkpoint"] == 0:
            metrics = {"progress": training.step}
            if rank == 0:
                with tempfile.TemporaryDirectory() as directory:
                    training.save(Path(directory))
                    ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))
            else:
                ray.train.report(metrics)


def main():
    marks_dir, step_time_s, steps_per_checkpoint, storage_dir, poll_interval_s = sys.argv[1:]
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = poll_interval_s
    TorchTrainer(
        train_loop,
        train_loop_config={
            "marks_dir": marks_dir,
            "step_time_s": float(step_time_s),
            "steps_per_checkpoint": int(steps_per_checkpoint),
        },
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(
            storage_path=storage_dir, failure_config=ray.train.FailureConfig(max_failures=-1)
        ),
    ).fit()


if __name__ == "__main__":
    main()
