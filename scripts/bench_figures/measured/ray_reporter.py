"""A Ray Train job that reports a checkpoint: ``ray_reporter.py CHECKPOINT_DIR STORAGE_URI``.

Asked anything it answers with the seconds that ``ray.train.report`` took in the training function.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
import time
import traceback
from multiprocessing.connection import Client, Listener
from pathlib import Path

import fsspec
import pyarrow.fs
import ray
import ray.train
from ray.train.torch import TorchTrainer

from periflow_ray.runtime.ray_private import keep_to_loopback


def main() -> None:
    checkpoint_dir, storage_uri = sys.argv[1:]
    # Whatever Ray prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # Loopback as Ray's only network, as in ``periflow_ray.runtime.ray_train.train_run``, and quieter than there.
    keep_to_loopback()
    ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        address = str(Path(directory) / "reporter")
        with Listener(address) as listener:
            trainer = TorchTrainer(
                train_loop,
                train_loop_config={"address": address, "checkpoint_dir": checkpoint_dir},
                scaling_config=ray.train.ScalingConfig(num_workers=1),
                run_config=ray.train.RunConfig(
                    name="bench",
                    storage_path=storage_uri.removeprefix("s3://"),
                    # Ray's documented way to S3 other than Amazon's; rclone does not take Arrow's directory markers.
                    storage_filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem("s3"))),
                ),
            )
            fitting = threading.Thread(target=fit_or_exit, args=(trainer,), daemon=True)
            fitting.start()
            with listener.accept() as connection:
                print("ready", file=answers)
                for _ in sys.stdin:
                    connection.send("report")
                    print(connection.recv(), file=answers)
            fitting.join()
    ray.shutdown()


def fit_or_exit(trainer):
    try:
        trainer.fit()
    except ray.train.TrainingFailedError:
        traceback.print_exc()
        # The main thread waits for a training function that will never connect.
        os._exit(1)


def train_loop(config):
    with Client(config["address"]) as connection:
        while True:
            try:
                connection.recv()
            except EOFError:
                return
            began_s = time.monotonic()
            ray.train.report({"loss": 0.5}, checkpoint=ray.train.Checkpoint.from_directory(config["checkpoint_dir"]))
            connection.send(time.monotonic() - began_s)


if __name__ == "__main__":
    main()
