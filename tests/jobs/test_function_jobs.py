"""``periflow_ray.TorchTrainer``: what a script that uses it sees, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.message_server import serve_messages
from support.workbench import Workbench, processes_with

from periflow_ray import jobs
from periflow_ray.credentials import CREDENTIALS_FILE_VARIABLE, create_credential
from periflow_ray.jobs.logs import read_logs
from periflow_ray.jobs.metrics import read_metrics
from periflow_ray.store import checkpoints

pytestmark = pytest.mark.ray

SCRIPT = """
import json, os, sys
import periflow_ray as pf

def train(config):
    import torch, ray.train.torch
    model = ray.train.torch.prepare_model(torch.nn.Linear(1, 1))
    rank = torch.distributed.get_rank()
    start = int(os.environ["PROCESSED_ITERS"])
    print("the key is", os.environ.get("WANDB_API_KEY"), "of", os.environ.get("WANDB_ENTITY"))
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

if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    config = {"fails": options["fails"]}
    services = {name: options[name] for name in ("plugin", "env_var") if name in options}
    trainer = pf.TorchTrainer(
        train, config, num_devices=2, name="fn", max_failures=options["max_failures"], **services
    )
    result = trainer.fit()
    with result.checkpoint.as_directory() as directory:
        files = sorted(os.listdir(directory))
    print("RESULT", json.dumps({"metrics": result.metrics, "files": files, "returned": result.return_value}))
"""

# What is used of the package, which the monitor finds where the script is.
WANDB_STAND_IN = """
import json
from pathlib import Path

class Run:
    def define_metric(self, *arguments, **options):
        pass

    def log(self, data):
        with Path(__file__).with_name("wandb.jsonl").open("a") as file:
            file.write(json.dumps(data) + chr(10))

    def finish(self):
        pass

def init(**options):
    assert (options["entity"], options["settings"]["api_key"]) == ("our-team", "hunter2")
    return Run()
"""


def run_script(workbench: Workbench, folder: Path, **options: object) -> subprocess.CompletedProcess[str]:
    (folder / "train.py").write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, "train.py", json.dumps(options)],
        cwd=folder,
        env={**workbench.env, **workbench.ray_env(), CREDENTIALS_FILE_VARIABLE: os.environ[CREDENTIALS_FILE_VARIABLE]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_a_function_job_resumes_after_a_failure_returns_the_committed_checkpoint_and_tells_its_services(
    workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CREDENTIALS_FILE_VARIABLE, str(tmp_path / "credentials.json"))
    monkeypatch.setitem(workbench.env, "no_proxy", "127.0.0.1")
    create_credential("our-wandb", "wandb", {"api_key": "hunter2"})
    (tmp_path / "wandb.py").write_text(WANDB_STAND_IN)
    with serve_messages() as server:
        plugin = {"webhook": {"url": f"{server.url}/hook"}, "wandb": {"credential_id": "our-wandb"}}
        options = {"plugin": plugin, "env_var": {"WANDB_ENTITY": "our-team"}}
        done = run_script(workbench, tmp_path, fails=True, max_failures=1, **options)

    assert done.returncode == 0, (done.stdout, done.stderr)
    result = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))[7:])
    assert result == {
        "metrics": {"loss": 0.125, "step": 8},
        "files": ["model.pt"],
        "returned": {"rank": 0, "start": 4},
    }
    job = jobs.list_jobs(workbench.root)[0]
    job_id = job.record.job_id
    assert (job.record.name, job.state.status, job.state.attempt) == ("fn", "success", 2)
    assert [m.step for m in checkpoints.list_committed(workbench.root, job_id)] == [4, 8]
    steps = [m.step for m in read_metrics(workbench.root, job_id, rank=1)]
    # What was saved right before the function raised is not lost.
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    starts = {line.text for line in read_logs(workbench.root, job_id) if "starts at" in line.text}
    assert starts == {
        "rank 0 starts at 0 with []",
        "rank 1 starts at 0 with []",
        "rank 0 starts at 4 with ['model.pt']",
        "rank 1 starts at 4 with ['model.pt']",
    }
    assert [document["kind"] for document in server.documents] == ["attempt_failed", "resumed", "success"]
    cause = "node 0, rank 1: the function raised ValueError: boom right after the save."
    assert server.documents[0]["cause"] == cause
    sent = [json.loads(line) for line in (tmp_path / "wandb.jsonl").read_text().splitlines()]
    assert sent == [{"loss": 1.0 / step, "step": step} for step in range(1, 9)]
    keys = [line.text for line in read_logs(workbench.root, job_id) if line.text.startswith("the key")]
    assert keys == ["the key is *** of our-team"] * 4
    # Ray shows the script what the ranks print.
    assert "hunter2" not in done.stdout + done.stderr


def test_a_failing_function_raises_and_the_job_has_the_diagnosis(workbench: Workbench, tmp_path: Path) -> None:
    done = run_script(workbench, tmp_path, fails=True, max_failures=0)

    assert done.returncode == 1
    assert "ValueError: boom right after the save" in done.stderr
    job = jobs.list_jobs(workbench.root)[0]
    assert job.state.status == "failed"
    assert "rank 1: the function raised ValueError: boom right after the save" in (job.state.message or "")
    assert not processes_with(str(tmp_path / "train.py"))


ELASTIC_SCRIPT = """
import ray
import periflow_ray as pf

def train():
    pf.init(total_train_steps=2)
    for _ in range(2):
        with pf.train_step():
            pass
    return ray.train.get_context().get_world_size()

if __name__ == "__main__":
    ray.init()
    more_than_half = ray.cluster_resources()["CPU"] // 2 + 1
    trainer = pf.TorchTrainer(train, num_devices=2, min_devices=1, resources_per_device={"CPU": more_than_half})
    print("WORLD SIZE", trainer.fit().return_value)
"""


def test_an_elastic_function_job_starts_with_what_there_is(workbench: Workbench, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(ELASTIC_SCRIPT)
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env={**workbench.env, **workbench.ray_env()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert "WORLD SIZE 1" in done.stdout, (done.stdout, done.stderr)
