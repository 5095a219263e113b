"""A function as a command, which starts once per device: a command can be ended from outside, a function cannot.

python -m periflow_ray.runtime.function_jobs.command FILE
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import cloudpickle

from periflow_ray.runtime.function_jobs.call import call_with_config
from periflow_ray.runtime.function_jobs.local_modules import dump_with_modules
from periflow_ray.runtime.ray_private import set_local_context
from periflow_ray.sdk import hparams

# The workspace of such a job: a folder with one file.
FUNCTION_DIR = "function"
FUNCTION_FILE = "function.pkl"
COMMAND = f"exec python -m periflow_ray.runtime.function_jobs.command {FUNCTION_DIR}/{FUNCTION_FILE}"


@dataclass(frozen=True)
class FunctionCommand:
    """What each rank calls.

    Args:
        backend: of torch.distributed; None for nccl where the job has GPUs, else gloo.
        timeout_s: of its process group.
    """

    train_loop: Callable[..., Any]
    config: dict[str, Any] | None
    backend: str | None = None
    timeout_s: float = 1800.0


def write_function(command: FunctionCommand, directory: Path) -> None:
    """Write the workspace of a job that runs it; what its script defines travels with it."""
    directory.mkdir(parents=True)
    (directory / FUNCTION_FILE).write_bytes(dump_with_modules(command))


def main() -> None:
    """Call the function as the rank that the environment names, with the trial's parameters in its config."""
    packed = Path(sys.argv[1]).read_bytes()
    command: FunctionCommand = cloudpickle.loads(packed)
    _join_others(command)
    # Ray takes as long to import as a short trial runs.
    if re.search(rb"(?<![a-z_])ray(?![a-z_])", packed) or "ray" in sys.modules:
        set_local_context(
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            local_rank=int(os.environ["LOCAL_RANK"]),
            local_world_size=int(os.environ["LOCAL_WORLD_SIZE"]),
            node_rank=int(os.environ["NODE_RANK"]),
        )
    call_with_config(command.train_loop, {**(command.config or {}), **hparams()})


def _join_others(command: FunctionCommand) -> None:
    """Open the process group that a function job's ranks find."""
    import torch

    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    torch.distributed.init_process_group(
        command.backend or ("nccl" if has_gpu else "gloo"), timeout=timedelta(seconds=command.timeout_s)
    )


if __name__ == "__main__":
    main()
