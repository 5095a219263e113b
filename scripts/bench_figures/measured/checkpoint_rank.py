"""A rank that saves checkpoints: ``checkpoint_rank.py OUTPUT_DIR NUM_FILES NUM_BYTES``.

Asked
    ``write``                 it writes the files anew in place, all bytes together NUM_BYTES, each MiB unlike before;
    ``save``                  it calls ``upload_checkpoint()`` and answers when the call began and ended, in seconds of
                              the machine's monotonic clock;
    ``train S save|alone``    it trains on one core for S seconds, with a checkpoint at the start or without, and
                              answers with the steps and the seconds outside ``upload_checkpoint()``.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import periflow_ray as pf

MIB = 1 << 20
BATCH_SIZE, WIDTH = 64, 512


def main() -> None:
    output_dir, num_files, num_bytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    trainer = None
    pf.init(10**9)
    print("ready", flush=True)
    for line in sys.stdin:
        question, *arguments = line.split()
        if question == "write":
            write_files(output_dir, num_files, num_bytes)
            answer = "written"
        elif question == "save":
            with pf.train_step():
                pf.metric({"loss": 0.5})
            answer = "{} {}".format(*save())
        else:
            trainer = trainer or make_trainer()
            answer = "{} {}".format(*train(trainer, float(arguments[0]), saves=arguments[1] == "save"))
        print(answer, flush=True)


def write_files(directory: Path, num_files: int, num_bytes: int) -> None:
    block = bytearray(os.urandom(MIB))
    for index in range(num_files):
        path = directory / ("checkpoint.pt" if num_files == 1 else f"__{index}_0.distcp")
        left = num_bytes // num_files
        with open(path, "wb") as file:
            while left > 0:
                block[:16] = os.urandom(16)
                left -= file.write(memoryview(block)[:left])


def save() -> tuple[float, float]:
    began_s = time.monotonic()
    pf.upload_checkpoint()
    return began_s, time.monotonic()


def make_trainer():
    import torch

    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs = torch.randn(BATCH_SIZE, WIDTH)

    def step():
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), inputs)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def train(step, seconds: float, *, saves: bool) -> tuple[int, float]:
    end_s = time.monotonic() + seconds
    saving_s = 0.0
    began_s = time.monotonic()
    if saves:
        called_s, returned_s = save()
        saving_s = returned_s - called_s
    num_steps = 0
    while time.monotonic() < end_s:
        with pf.train_step():
            pf.metric({"loss": step()})
        num_steps += 1
    return num_steps, time.monotonic() - began_s - saving_s


if __name__ == "__main__":
    main()
