"""``main.py`` with a PeriFlowTrainer and no devices named, started in each way that a command job may start it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = """
import json, os, sys
sys.path.insert(0, {tests!r})
from support.tiny_regression import QUIET, TinyRegression, make_loader
from periflow_ray.lightning import PeriFlowTrainer

QUIET.pop("accelerator")
trainer, module = PeriFlowTrainer(max_epochs=1, **QUIET), TinyRegression()
trainer.fit(module, make_loader(4))
with open(f"rank{{trainer.global_rank}}.json", "w") as file:
    json.dump([trainer.world_size, trainer.local_rank, trainer.node_rank, len(module.seen)], file)
"""


@pytest.fixture
def main(tmp_path: Path) -> Path:
    path = tmp_path / "main.py"
    path.write_text(MAIN.format(tests=str(Path(__file__).parents[1])))
    return path


def make_job_env(num_nodes: int, devices_per_node: int, **variables: str) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        **os.environ,
        "PERIFLOW_ENABLED": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NUM_NODES": str(num_nodes),
        "NPROC_PER_NODE": str(devices_per_node),
        "WORLD_SIZE": str(num_nodes * devices_per_node),
        "NODE_RANK": "0",
        "OMP_NUM_THREADS": "1",
        **variables,
    }


def run_together(command: list[str], env: dict[str, str], differences: list[dict[str, str]]) -> None:
    children = [subprocess.Popen(command, env={**env, **difference}) for difference in differences]
    try:
        assert [child.wait(timeout=120) for child in children] == [0] * len(children)
    finally:
        for child in children:
            child.kill()


def read_ranks(directory: Path) -> dict[str, list[object]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(directory.glob("rank*.json"))}


# Each of two ranks trains two of the four batches.


def test_once_per_node_with_lightning_starting_the_other_local_rank(main, tmp_path):
    run_together([sys.executable, str(main)], make_job_env(num_nodes=1, devices_per_node=2), [{}])
    assert read_ranks(tmp_path) == {"rank0": [2, 0, 0, 2], "rank1": [2, 1, 0, 2]}


def test_once_per_node_on_two_nodes(main, tmp_path):
    nodes = [{"NODE_RANK": "0"}, {"NODE_RANK": "1"}]
    run_together([sys.executable, str(main)], make_job_env(num_nodes=2, devices_per_node=1), nodes)
    assert read_ranks(tmp_path) == {"rank0": [2, 0, 0, 2], "rank1": [2, 0, 1, 2]}


def test_once_per_device_with_the_jobs_ranks(main, tmp_path):
    devices = [{"NODE_RANK": "0", "RANK": "0", "LOCAL_RANK": "0"}, {"NODE_RANK": "1", "RANK": "1", "LOCAL_RANK": "0"}]
    run_together([sys.executable, str(main)], make_job_env(num_nodes=2, devices_per_node=1), devices)
    assert read_ranks(tmp_path) == {"rank0": [2, 0, 0, 2], "rank1": [2, 0, 1, 2]}


def test_under_torchrun(main, tmp_path):
    env = make_job_env(num_nodes=1, devices_per_node=2)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", "2"]
    run_together([*torchrun, "--master_port", env["MASTER_PORT"], str(main)], env, [{}])
    assert read_ranks(tmp_path) == {"rank0": [2, 0, 0, 2], "rank1": [2, 1, 0, 2]}


CLI_MAIN = """
import json
from periflow_ray.lightning import PeriFlowTrainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, DemoModel

cli = LightningCLI(DemoModel, BoringDataModule, trainer_class=PeriFlowTrainer, seed_everything_default=1)
trainer = cli.trainer
with open(f"rank{trainer.global_rank}.json", "w") as file:
    json.dump([trainer.world_size, trainer.local_rank, trainer.node_rank, trainer.global_step], file)
"""


# Each of two ranks trains 32 of the 64 batches, once with the options of the command line and once with those of a
# configuration that LightningCLI wrote, which names every option. The second run is as after a restart: what the first
# one wrote is there.
@pytest.mark.long
@pytest.mark.parametrize("launch", ["node", "device", "torchrun"])
def test_lightning_cli_on_two_nodes(launch, tmp_path):
    pytest.importorskip("jsonargparse")
    pytest.importorskip("lightning")
    main = tmp_path / "main.py"
    main.write_text(CLI_MAIN)
    options = ["--trainer.max_epochs=1", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    printed = subprocess.run(
        [sys.executable, str(main), "fit", "--print_config", *options], capture_output=True, text=True, check=True
    )
    (tmp_path / "given.yaml").write_text(printed.stdout)
    env = make_job_env(num_nodes=2, devices_per_node=1)
    ranks = [{"RANK": "0", "LOCAL_RANK": "0"}, {"RANK": "1", "LOCAL_RANK": "0"}] if launch == "device" else [{}, {}]
    # torchrun's own option of the node's rank is a variable, too.
    nodes = [{"NODE_RANK": str(number), "PET_NODE_RANK": str(number), **rank} for number, rank in enumerate(ranks)]
    for arguments in (options, ["--config", "given.yaml"]):
        command = [sys.executable, str(main), "fit", *arguments]
        if launch == "torchrun":
            rendezvous = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "static"]
            rendezvous += ["--master_addr", "127.0.0.1", "--master_port", env["MASTER_PORT"]]
            start = [sys.executable, "-m", "torch.distributed.run", *rendezvous]
            command = [*start, *command[1:]]
        run_together(command, env, nodes)
        assert read_ranks(tmp_path) == {"rank0": [2, 0, 0, 32], "rank1": [2, 0, 1, 32]}
        for path in tmp_path.glob("rank*.json"):
            path.unlink()
