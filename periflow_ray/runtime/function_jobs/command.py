"""A function as a command, which starts once per device: a command can be ended from outside, a function cannot.

python -m periflow_ray.runtime.function_jobs.command FILE
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from periflow_ray.runtime.function_jobs.call import call_with_config
from periflow_ray.sdk import hparams

# The workspace of such a job: a folder with this file, and with what lies beside the script where that is not there.
FUNCTION_DIR = "function"
FUNCTION_FILE = "periflow-function"
COMMAND = f"exec python -m periflow_ray.runtime.function_jobs.command {FUNCTION_DIR}/{FUNCTION_FILE}"


@dataclass(frozen=True)
class FunctionCommand:
    """What each rank calls.

    Args:
        name: of the job, for ``ray.train.get_context().get_experiment_name()``.
        backend: of torch.distributed; None for nccl where the job has GPUs, else gloo.
        timeout_s: of its process group.
        modules_dir: where it finds the modules of its script; None for the folder of its own file.
    """

    train_loop: Callable[..., Any]
    config: dict[str, Any] | None
    name: str = ""
    backend: str | None = None
    timeout_s: float = 1800.0
    modules_dir: str | None = None


def write_function(command: FunctionCommand, directory: Path) -> None:
    """Write it into the workspace of a job that runs it; what the script itself defines travels with it."""
    directory.mkdir(parents=True, exist_ok=True)
    # The folder is known before anything of it is imported.
    packed = command.modules_dir, cloudpickle.dumps(command)
    (directory / FUNCTION_FILE).write_bytes(pickle.dumps(packed))


def main() -> None:
    """Call the function as the rank that the environment names, with the trial's parameters in its config."""
    path = Path(sys.argv[1])
    modules_dir, packed = pickle.loads(path.read_bytes())
    if modules_dir is not None and not Path(modules_dir).is_dir():
        print(f"the folder of the script, '{modules_dir}', is not on this machine; its modules are missing", flush=True)
    sys.path.insert(0, modules_dir or str(path.parent.resolve()))
    command: FunctionCommand = cloudpickle.loads(packed)
    _join_others(command)
    if "ray.train" in sys.modules:
        _answer_train_calls(command.name)
    else:
        sys.meta_path.insert(0, _RayTrainFinder(command.name))
    call_with_config(command.train_loop, {**(command.config or {}), **hparams()})


class _RayTrainFinder(importlib.abc.MetaPathFinder):
    """Has ``ray.train``'s calls answered once somebody imports it: that takes as long as a short trial runs.

    Args:
        name: of the job.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname != "ray.train":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        run_module = spec.loader.exec_module

        def run_and_answer(module: ModuleType) -> None:
            run_module(module)
            # As the import itself does it a moment later.
            sys.modules["ray"].train = module  # type: ignore[attr-defined]
            _answer_train_calls(self._name)

        spec.loader.exec_module = run_and_answer  # type: ignore[method-assign]
        return spec


def _answer_train_calls(name: str) -> None:
    from periflow_ray.runtime.function_jobs.local_words import LocalWords
    from periflow_ray.runtime.ray_private import answer_train_calls

    answer_train_calls(LocalWords(name))


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
