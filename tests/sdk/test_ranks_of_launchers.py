"""Two ranks of one node, started in every way that people start them, against the real session server.

Which rank a process is has to be right however it was started, and the ranks' save has to be one.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

# What a script does after its process group is there; "r" tells which rank it takes itself for.
TRAIN = """
import os, sys
import periflow_ray as pf

def train(rank, barrier=lambda: None):
    for _ in range(pf.resumed_step(), 3):
        with pf.train_step():
            pf.metric({"r": rank})
    barrier()
    pf.upload_checkpoint()
"""
# pf.init() comes first, as in a script's first lines.
PROCESS_GROUP = (
    TRAIN
    + """
import torch.distributed as dist
import torch.multiprocessing as mp

def main(*place):
    pf.init(total_train_steps=3)
    options = {"rank": place[0], "world_size": 2} if place else {}
    dist.init_process_group("gloo", **options)
    train(dist.get_rank(), dist.barrier)
    dist.destroy_process_group()
"""
)
CALL_MAIN = PROCESS_GROUP + "\nmain()\n"
LIGHTNING = (
    TRAIN
    + """
import torch, lightning.pytorch as pl

pf.init(total_train_steps=3)

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
    def on_fit_start(self):
        train(self.global_rank, self.trainer.strategy.barrier)

trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_steps=1, logger=False,
                     enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer.fit(Model(), torch.utils.data.DataLoader(torch.ones(2, 1)))
"""
)
ACCELERATE = (
    TRAIN
    + """
from accelerate import Accelerator

pf.init(total_train_steps=3)
accelerator = Accelerator(cpu=True)
train(accelerator.process_index, accelerator.wait_for_everyone)
"""
)
FABRIC = (
    TRAIN
    + """
from lightning.fabric import Fabric

pf.init(total_train_steps=3)
fabric = Fabric()
train(fabric.global_rank, fabric.barrier)
"""
)
SPAWN = PROCESS_GROUP + '\nif __name__ == "__main__":\n    mp.start_processes(main, nprocs=2, start_method="METHOD")\n'
# The process that starts the others has a session, too, and never trains.
SPAWN_BELOW_A_SESSION = SPAWN.replace("    mp.start", "    pf.init()\n    mp.start")
BY_HAND = PROCESS_GROUP + "\nmain(int(sys.argv[1]))\n"
WITHOUT_TORCH = TRAIN + "\npf.init(total_train_steps=3)\ntrain(int(os.environ['VARIABLE']))\n"

MPIRUN = "mpirun --allow-run-as-root --oversubscribe --mca btl self,tcp --mca btl_tcp_if_include lo -np 2"


@dataclass(frozen=True)
class Launch:
    script: str
    command: str
    needs: str | None = None
    is_long: bool = False


TORCHRUN = "python -m torch.distributed.run --nproc_per_node 2 --master_addr 127.0.0.1 --master_port $MASTER_PORT"
LAUNCHES = {
    "torchrun": Launch(CALL_MAIN, f"{TORCHRUN} main.py", is_long=True),
    "mp.spawn": Launch(SPAWN.replace("METHOD", "spawn"), "python main.py", is_long=True),
    "mp.spawn-below-a-session": Launch(SPAWN_BELOW_A_SESSION.replace("METHOD", "spawn"), "python main.py"),
    "mp.fork": Launch(SPAWN.replace("METHOD", "fork"), "python main.py", is_long=True),
    "by-hand": Launch(BY_HAND, "python main.py 0 & python main.py 1 & wait", is_long=True),
    # It says "multi_gpu", and its Accelerator(cpu=True) is what decides.
    "accelerate": Launch(
        ACCELERATE,
        "accelerate launch --multi_gpu --num_processes 2 --main_process_port $MASTER_PORT main.py",
        is_long=True,
    ),
    "lightning": Launch(LIGHTNING, "python main.py", is_long=True),
    "fabric-run": Launch(
        FABRIC, "fabric run --accelerator cpu --devices 2 --strategy ddp --main-port $MASTER_PORT main.py", is_long=True
    ),
    "mpirun": Launch(
        WITHOUT_TORCH.replace("VARIABLE", "OMPI_COMM_WORLD_RANK"),
        f"{MPIRUN} python main.py",
        needs="mpirun (Debian's openmpi-bin)",
    ),
    # Their documented variables: srun needs Slurm's daemons, and DeepSpeed's launcher is torchrun's in these.
    "srun": Launch(
        WITHOUT_TORCH.replace("VARIABLE", "SLURM_PROCID"),
        "for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=2 SLURM_STEP_TASKS_PER_NODE=2 "
        "python main.py & done; wait",
    ),
    "deepspeed": Launch(
        WITHOUT_TORCH.replace("VARIABLE", "RANK"),
        "for i in 0 1; do RANK=$i LOCAL_RANK=$i WORLD_SIZE=2 LOCAL_SIZE=2 python main.py & done; wait",
    ),
}


@pytest.fixture
def run(member, tmp_path: Path) -> Callable[[str, str], subprocess.CompletedProcess[str]]:
    """Runs a command as a job's node does, with a script ``main.py`` beside it."""

    def run(script: str, command: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "main.py").write_text(script)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {
            **os.environ,
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "PERIFLOW_SESSION": str(member.socket_path),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "NUM_NODES": "1",
            "NODE_RANK": "0",
            "NPROC_PER_NODE": "2",
            "WORLD_SIZE": "2",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        return subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )

    return run


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if LAUNCHES[name].is_long else []) for name in LAUNCHES]
)
def test_each_process_is_its_own_rank_and_they_save_once(member, run, name):
    launch = LAUNCHES[name]
    program = launch.command.split()[0]
    if launch.needs is not None and shutil.which(program) is None:
        pytest.skip(f"{launch.needs} is not installed")
    ended = run(launch.script, launch.command)
    assert ended.returncode == 0, ended.stderr
    member.server.close()
    records = member.server.take_records()
    assert (member.notes, member.snapshots) == ([], [3])
    assert records.steps == {0: 3, 1: 3}
    told = {(metric.rank, metric.local_rank, metric.values["r"]) for metric in records.metrics}
    assert told == {(0, 0, 0), (1, 1, 1)}
    assert len(records.metrics) == 6
    assert member.server.find_failed_rank() is None
