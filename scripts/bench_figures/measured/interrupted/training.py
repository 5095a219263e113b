"""A small training over all ranks whose steps take as long as on a device that is faster than this machine's cores.

What the computing does not need of a step's time is slept: the cores are free meanwhile, as beside a device. Every
rank writes down when it did what, in ``<directory>/rank-<rank>``: lines of ``<what> <Unix seconds> <process>``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

BATCH_SIZE, WIDTH = 16, 256
FILE_NAME = "training.pt"
_PROCESS = f"{os.getpid()}.{time.time_ns()}"


class Marks:
    """Where a rank writes down what it does."""

    def __init__(self, directory: str, rank: int) -> None:
        path = Path(directory) / f"rank-{rank}"
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, what: object, time_unix_s: float | None = None) -> None:
        """A line of its own, also when the process is killed right after it."""
        line = f"{what} {time.time() if time_unix_s is None else time_unix_s} {_PROCESS}\n"
        os.write(self._file, line.encode())


class Training:
    """The model, and how far it is; from the checkpoint in a directory, if there is one.

    Collective: make one on all ranks, in the process group; only rank 0 needs the checkpoint.

    Args:
        step_time_s: what a step takes.
    """

    def __init__(self, directory: Path | None, step_time_s: float) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 1))
        step = torch.zeros(1)
        if directory is not None and (directory / FILE_NAME).exists():
            saved = torch.load(directory / FILE_NAME)
            model.load_state_dict(saved["model"])
            step += saved["step"]
        dist.broadcast(step, src=0)
        self.step = int(step)
        self._step_time_s = step_time_s
        self._model = DistributedDataParallel(model)
        self._optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def make_step(self) -> None:
        """One step of all ranks together."""
        began_s = time.monotonic()
        inputs = torch.randn(BATCH_SIZE, WIDTH, generator=torch.Generator().manual_seed(self.step))
        self._optimizer.zero_grad()
        self._model(inputs).square().mean().backward()
        self._optimizer.step()
        self.step += 1
        time.sleep(max(0.0, self._step_time_s - (time.monotonic() - began_s)))

    def save(self, directory: Path) -> None:
        """Write the checkpoint; whole or not at all."""
        partial = directory / f"{FILE_NAME}.partial"
        torch.save({"model": self._model.module.state_dict(), "step": self.step}, partial)
        partial.rename(directory / FILE_NAME)
