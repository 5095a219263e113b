"""Notes when Ray Train calls the train loop: ``main.py DIRECTORY STORAGE_DIRECTORY``."""

import sys
import time
from pathlib import Path

import ray.train
from ray.train.torch import TorchTrainer


def train_loop(config):
    start_unix_s = time.time()
    rank = ray.train.get_context().get_world_rank()
    (Path(config["marks_dir"]) / str(rank)).write_text(str(start_unix_s))


def main():
    marks_dir, storage_dir = sys.argv[1:]
    TorchTrainer(
        train_loop,
        train_loop_config={"marks_dir": marks_dir},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(storage_path=storage_dir),
    ).fit()


if __name__ == "__main__":
    main()
