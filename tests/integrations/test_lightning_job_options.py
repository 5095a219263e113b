from __future__ import annotations

import inspect

import pytest
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy

from periflow_ray.lightning.job_options import DeviceEnvironment, fill_from_job

NODE_JOB = {"PERIFLOW_ENABLED": "1", "NPROC_PER_NODE": "4", "NUM_NODES": "2", "WORLD_SIZE": "8", "NODE_RANK": "1"}
DEVICE_JOB = {**NODE_JOB, "RANK": "6", "LOCAL_RANK": "2"}
TORCHRUN = {**DEVICE_JOB, "TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "3", "WORLD_SIZE": "6"}


def test_a_command_once_per_node_lets_lightning_start_the_other_devices():
    assert fill_from_job({}, NODE_JOB, num_gpus=4) == {
        "devices": 4,
        "num_nodes": 2,
        "accelerator": "cuda",
        "strategy": "ddp",
    }


def test_without_gpus_the_devices_are_cpu_processes():
    assert fill_from_job({}, NODE_JOB, num_gpus=0)["accelerator"] == "cpu"


def test_torchrun_counts_its_own_processes():
    assert fill_from_job({}, TORCHRUN, num_gpus=4) == {
        "devices": 3,
        "num_nodes": 2,
        "accelerator": "cuda",
        "strategy": "ddp",
    }


def test_a_command_once_per_device_starts_nothing_and_takes_its_ranks_from_the_job(monkeypatch):
    for name, value in DEVICE_JOB.items():
        monkeypatch.setenv(name, value)
    options = fill_from_job({}, DEVICE_JOB, num_gpus=4)
    (environment,) = options.pop("plugins")
    assert options == {"devices": 4, "num_nodes": 2, "accelerator": "cuda", "strategy": "ddp"}
    ranks = (environment.global_rank(), environment.local_rank(), environment.node_rank(), environment.world_size())
    assert (ranks, environment.creates_processes_externally) == ((6, 2, 1, 8), True)


def test_one_device_needs_no_strategy():
    environ = {"PERIFLOW_ENABLED": "1", "NPROC_PER_NODE": "1", "NUM_NODES": "1", "WORLD_SIZE": "1"}
    assert fill_from_job({}, environ, num_gpus=0) == {"devices": 1, "num_nodes": 1, "accelerator": "cpu"}


def test_what_the_user_set_stays():
    strategy = DDPStrategy(find_unused_parameters=True)
    given = {"devices": [0], "num_nodes": 4, "strategy": strategy, "accelerator": "cpu", "max_epochs": 3}
    assert fill_from_job(given, NODE_JOB, num_gpus=4) == given


def test_what_is_lightnings_default_counts_as_left_out():
    # As LightningCLI hands them on, from its command line or from a configuration that it wrote.
    options = {name: each.default for name, each in inspect.signature(Trainer).parameters.items()}
    assert options["num_nodes"] == 1
    assert fill_from_job(options, TORCHRUN, num_gpus=4) == {**options, **fill_from_job({}, TORCHRUN, num_gpus=4)}
    assert fill_from_job({**options, "devices": 3}, TORCHRUN, num_gpus=0)["num_nodes"] == 2


@pytest.mark.parametrize("plugins", [LightningEnvironment(), [LightningEnvironment()]])
def test_a_cluster_environment_that_the_user_set_stays(plugins):
    assert fill_from_job({"plugins": plugins}, DEVICE_JOB, num_gpus=0)["plugins"] is plugins


def test_other_plugins_of_the_user_are_kept_beside_ours():
    first, second = fill_from_job({"plugins": "other"}, DEVICE_JOB, num_gpus=0)["plugins"]
    assert (first, type(second)) == ("other", DeviceEnvironment)


def test_outside_a_job_nothing_changes():
    environ = {name: value for name, value in DEVICE_JOB.items() if name != "PERIFLOW_ENABLED"}
    assert fill_from_job({"max_epochs": 3}, environ, num_gpus=4) == {"max_epochs": 3}
