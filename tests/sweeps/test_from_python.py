"""``periflow_ray.sweep`` and ``periflow_ray.trainable``: what they are given, and what they refuse."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray import tune

import periflow_ray
from periflow_ray.errors import UsageError
from periflow_ray.runtime.function_jobs.command import FUNCTION_FILE, FunctionCommand
from periflow_ray.runtime.ray_private import TrialResults, make_result_grid
from periflow_ray.spec import KeepBest, parse_job, parse_sweep
from periflow_ray.sweeps.space import domain_of, parameter_of


def train(config: dict[str, Any]) -> None:
    pass


@pytest.mark.parametrize(
    ("domain", "written"),
    [
        (tune.choice(["a", 2]), {"choice": ["a", 2]}),
        (tune.uniform(0, 1.5), {"uniform": [0, 1.5]}),
        (tune.quniform(0, 1, 0.25), {"quniform": [0, 1, 0.25]}),
        (tune.loguniform(1e-4, 1), {"loguniform": [1e-4, 1]}),
        (tune.randint(2, 9), {"randint": [2, 9]}),
        (tune.lograndint(2, 900), {"lograndint": [2, 900]}),
        (tune.randn(1.0, 0.5), {"randn": [1.0, 0.5]}),
        (tune.grid_search([1, 2]), {"grid": [1, 2]}),
        (0.5, 0.5),
        ({"loguniform": [1, 2]}, {"loguniform": [1, 2]}),
    ],
)
def test_ray_tunes_domains_are_those_of_a_sweeps_file(domain: Any, written: object) -> None:
    assert parameter_of("x", domain) == written
    spec = parse_sweep({"metric": "loss", "mode": "min", "num_trials": 1, "parameters": {"x": written}})
    # And back, to the domain that draws the same.
    again = domain_of(spec.parameters["x"], "random")
    assert parameter_of("x", again) == written


@pytest.mark.parametrize(
    "domain",
    [tune.sample_from(lambda: 1), tune.qloguniform(2, 10, 2), tune.qrandint(2, 10, 2), tune.qlograndint(2, 10, 2)],
)
def test_a_domain_that_a_sweep_does_not_have_is_refused_by_the_parameters_name(domain: Any) -> None:
    with pytest.raises(
        UsageError, match=r"parameters\.depth is a .* that a sweep does not have; it may be tune\.choice"
    ):
        parameter_of("depth", domain)


def trainer_of(function: Callable[..., Any] = train, **given: Any) -> periflow_ray.TorchTrainer:
    return periflow_ray.TorchTrainer(function, **given)


@pytest.mark.parametrize(
    ("what", "parameters", "given", "text"),
    [
        (trainer_of(), None, {}, "parameters is missing: what varies"),
        (trainer_of(), {"lr": 0.1}, {"mode": "least"}, "mode is the text 'least'"),
        (trainer_of(), {"lr": 0.1}, {"scheduler": "ashaa"}, "scheduler is the text 'ashaa'"),
        (trainer_of(), {"lr": tune.uniform(0, 1)}, {}, "num_trials is missing"),
        (trainer_of(lambda: None), {"lr": 0.1}, {}, "takes no config"),
        (trainer_of(resume=3), {"lr": 0.1}, {}, "has resume, datasets or min_devices"),
        (trainer_of(datasets={"train": []}), {"lr": 0.1}, {}, "has resume, datasets or min_devices"),
        (trainer_of(resources_per_device={"CPU": 1, "TPU": 1}), {"lr": 0.1}, {}, "CPUs and whole GPUs only"),
        (trainer_of(resources_per_device={"GPU": 2}), {"lr": 0.1}, {}, "give device to sweep"),
        (7, {"lr": 0.1}, {}, "what must be a periflow_ray.TorchTrainer or the path of a template, not 7"),
        ("nowhere.yml", {"lr": 0.1}, {}, "cannot read the template 'nowhere.yml'"),
        (trainer_of(), None, {"resume": 3}, "leave all but storage out"),
    ],
)
def test_mistakes_are_told_before_ray_starts(
    tmp_path: Path, what: Any, parameters: Any, given: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError) as caught:
        periflow_ray.sweep(
            what, parameters, **{"metric": "loss", "mode": "min", "storage": str(tmp_path / "root"), **given}
        )
    assert text in str(caught.value)


def test_a_trainer_is_a_template_of_its_trials() -> None:
    trainer = trainer_of(
        train_loop_config={"depth": 2},
        num_devices=2,
        name="digits",
        max_failures=-1,
        hang_timeout_s=90,
        keep_last=2,
        keep_best=KeepBest(metric="loss", mode="min"),
        resources_per_device={"CPU": 3},
        env_var={"TEAM": "ours"},
    )
    template, command = trainer.as_trials()
    spec = parse_job(template)
    assert (spec.num_devices, spec.name, spec.hang_timeout_s, spec.max_failures) == (2, "digits", 90, 1_000_000)
    assert spec.checkpoint is not None
    assert (spec.checkpoint.keep_last, spec.checkpoint.keep_best) == (2, KeepBest(metric="loss", mode="min"))
    assert (spec.job_setting.docker.env_var, spec.job_setting.launch_mode) == ({"TEAM": "ours"}, "device")
    assert spec.job_setting.resources is not None
    assert spec.job_setting.resources.cpus == 3
    assert command == FunctionCommand(train, {"depth": 2}, "digits")


WRITER = """
import sys
from pathlib import Path
import helper
from periflow_ray.runtime.function_jobs.command import FunctionCommand, write_function
from periflow_ray.submit.modules import find_modules

def train(config):
    import torch.distributed as dist
    print(helper.scale(config["x"]), dist.get_backend(), dist.get_world_size())

write_function(FunctionCommand(train, {"x": 6}, modules_dir=str(find_modules())), Path(sys.argv[1]))
"""


# The function is that of another module, and only it names Ray.
TRAINING = """
def train(config):
    import ray.train.torch

    context = ray.train.get_context()
    print(context.get_experiment_name(), context.get_world_rank(), context.get_world_size())
"""
WRITER_OF_TRAINING = """
import sys
from pathlib import Path
import training
from periflow_ray.runtime.function_jobs.command import FunctionCommand, write_function
from periflow_ray.submit.modules import find_modules

write_function(FunctionCommand(training.train, {}, "digits", modules_dir=str(find_modules())), Path(sys.argv[1]))
"""


def run_function(writer: Path, tmp_path: Path) -> str:
    """Let a script write a function, then call it as the only rank; returns what it prints."""
    # Not from its own folder.
    subprocess.run([sys.executable, writer, tmp_path / "function"], cwd=tmp_path, check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    node = {"LOCAL_WORLD_SIZE": "1", "NODE_RANK": "0", "CKPT_DIR": str(tmp_path / "ckpt"), "PROCESSED_ITERS": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "periflow_ray.runtime.function_jobs.command", tmp_path / "function" / FUNCTION_FILE],
        env={**os.environ, **ranks, **node},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_function_is_called_by_a_command_with_the_modules_beside_its_script(tmp_path: Path) -> None:
    folder = tmp_path / "script"
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "__init__.py").write_text("FACTOR = 7\n")
    (folder / "helper.py").write_text("import package\n\ndef scale(value):\n    return value * package.FACTOR\n")
    (folder / "script.py").write_text(WRITER)

    assert run_function(folder / "script.py", tmp_path) == "42 gloo 1\n"


def test_rays_words_are_answered_in_a_function_of_another_module(tmp_path: Path) -> None:
    (tmp_path / "training.py").write_text(TRAINING)
    (tmp_path / "script.py").write_text(WRITER_OF_TRAINING)

    assert run_function(tmp_path / "script.py", tmp_path) == "digits 0 1\n"


def test_ray_tunes_result_grid_has_what_the_trials_reported() -> None:
    reports = [{"loss": 3.0, "step": 10, "training_iteration": 1}, {"loss": 2.0, "step": 20, "training_iteration": 2}]
    better = [{"loss": 1.0, "step": 10, "training_iteration": 1}, {"loss": 2.5, "step": 20, "training_iteration": 2}]
    grid = make_result_grid(
        [
            TrialResults("trial-1", 2, {"lr": 0.1}, reports, "/jobs/2", None, True, None),
            TrialResults("trial-2", 3, {"lr": 0.2}, better, "/jobs/3", None, True, None),
            TrialResults("trial-3", 4, {"lr": 0.3}, [], "/jobs/4", UsageError("no"), True, None),
        ],
        "/jobs/1",
        None,
        "loss",
        "min",
    )
    assert (len(grid), grid.num_errors, grid.num_terminated) == (3, 1, 2)
    assert grid.get_best_result().config == {"lr": 0.1}
    assert grid.get_best_result(scope="all").config == {"lr": 0.2}
    assert list(grid[1].metrics_dataframe["loss"]) == [1.0, 2.5]
    assert [str(error) for error in grid.errors] == ["no"]
    assert [result.metrics["job_id"] for result in grid] == [2, 3, 4]
    assert list(grid.get_dataframe()["config/lr"])[:2] == [0.1, 0.2]
