"""``periflow_ray.TorchTrainer``: what a script that uses it sees, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
from support.workbench import Workbench, processes_with

from periflow_ray import jobs
from periflow_ray.jobs.logs import read_logs
from periflow_ray.jobs.metrics import read_metrics
from periflow_ray.store import checkpoints
from periflow_ray.store.root import StorageRoot

pytestmark = pytest.mark.ray

# Three jobs from one script, because starting it takes as long as a job does.
FAILS_ONCE, ELASTIC, FAILS = 1, 2, 3
SCRIPT = """
import json, os
import periflow_ray as pf
import ray

def train(config):
    import torch, ray.train.torch
    model = ray.train.torch.prepare_model(torch.nn.Linear(1, 1))
    rank = torch.distributed.get_rank()
    start = int(os.environ["PROCESSED_ITERS"])
    print(f"rank {rank} starts at {start} with {sorted(os.listdir(os.environ['CKPT_DIR']))}")
    pf.init(total_train_steps=8)
    for step in range(start + 1, 9):
        with pf.train_step():
            model(torch.ones(1, 1)).sum().backward()
            pf.metric({"loss": 1.0 / step})
        if step % 4 == 0:
            if rank == 0:
                torch.save({"step": step}, os.path.join(os.environ["CKPT_DIR"], "model.pt"))
            pf.upload_checkpoint()
        if step == 4 and start == 0 and config["fails"] and rank == 1:
            raise ValueError("boom right after the save")
    return {"rank": rank, "start": start}

def count_ranks():
    pf.init(total_train_steps=2)
    for _ in range(2):
        with pf.train_step():
            pass
    return ray.train.get_context().get_world_size()

if __name__ == "__main__":
    result = pf.TorchTrainer(train, {"fails": True}, num_devices=2, name="fn", max_failures=1).fit()
    with result.checkpoint.as_directory() as directory:
        files = sorted(os.listdir(directory))
    print("RESULT", json.dumps({"metrics": result.metrics, "files": files, "returned": result.return_value}))

    more_than_half = ray.cluster_resources()["CPU"] // 2 + 1
    trainer = pf.TorchTrainer(count_ranks, num_devices=2, min_devices=1, resources_per_device={"CPU": more_than_half})
    print("WORLD SIZE", trainer.fit().return_value)

    pf.TorchTrainer(train, {"fails": True}, num_devices=2, name="fn", max_failures=0).fit()
"""


@dataclass(frozen=True)
class Ended:
    """The script after its end: what it left, its exit code and output, and the processes that it left."""

    root: StorageRoot
    exit_code: int
    stdout: str
    stderr: str
    left_pids: list[int]


@pytest.fixture(scope="module")
def ended(workbench: Workbench, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("function")
    (folder / "train.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(folder / "train.py")],
        cwd=folder,
        env={**workbench.env, **workbench.ray_env(), "PERIFLOW_STORAGE": str(folder / "storage")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
    )
    left = processes_with(str(folder / "train.py"))
    return Ended(StorageRoot(str(folder / "storage")), done.returncode, done.stdout, done.stderr, left)


def test_a_function_job_resumes_after_a_failure_and_returns_the_committed_checkpoint(ended: Ended) -> None:
    results = [line[7:] for line in ended.stdout.splitlines() if line.startswith("RESULT ")]
    assert [json.loads(result) for result in results] == [
        {"metrics": {"loss": 0.125, "step": 8}, "files": ["model.pt"], "returned": {"rank": 0, "start": 4}}
    ], ended
    job = jobs.read_job(ended.root, FAILS_ONCE)
    assert (job.record.name, job.state.status, job.state.attempt) == ("fn", "success", 2)
    assert [m.step for m in checkpoints.list_committed(ended.root, FAILS_ONCE)] == [4, 8]
    steps = [m.step for m in read_metrics(ended.root, FAILS_ONCE, rank=1)]
    # What was saved right before the function raised is not lost.
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    starts = {line.text for line in read_logs(ended.root, FAILS_ONCE) if "starts at" in line.text}
    assert starts == {
        "rank 0 starts at 0 with []",
        "rank 1 starts at 0 with []",
        "rank 0 starts at 4 with ['model.pt']",
        "rank 1 starts at 4 with ['model.pt']",
    }


def test_an_elastic_function_job_starts_with_what_there_is(ended: Ended) -> None:
    assert "WORLD SIZE 1" in ended.stdout, ended
    assert jobs.read_job(ended.root, ELASTIC).state.status == "success"


def test_a_failing_function_raises_and_the_job_has_the_diagnosis(ended: Ended) -> None:
    assert ended.exit_code == 1
    assert "ValueError: boom right after the save" in ended.stderr
    state = jobs.read_job(ended.root, FAILS).state
    assert state.status == "failed"
    assert "rank 1: the function raised ValueError: boom right after the save" in (state.message or "")
    assert ended.left_pids == []
