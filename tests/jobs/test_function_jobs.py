"""``periflow_ray.TorchTrainer``: what a script that uses it sees, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.message_server import serve_messages
from support.workbench import Workbench, processes_with

from periflow_ray import jobs
from periflow_ray.credentials import CREDENTIALS_FILE_VARIABLE, create_credential
from periflow_ray.jobs.logs import read_logs
from periflow_ray.jobs.metrics import read_metrics
from periflow_ray.store import checkpoints
from periflow_ray.store.root import StorageRoot

pytestmark = pytest.mark.ray

# Four jobs from one script, because starting it takes as long as a job does.
FAILS_ONCE, ELASTIC, DIES, FAILS = 1, 2, 3, 4
SCRIPT = """
import json, os, sys
import periflow_ray as pf
import ray

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

def count_ranks():
    pf.init(total_train_steps=2)
    for _ in range(2):
        with pf.train_step():
            pass
    return ray.train.get_context().get_world_size()

def die():
    for number in range(30):
        print("word", number)
    os.write(2, b"the last word of hunter2\\n")
    os._exit(7)

if __name__ == "__main__":
    services = {"plugin": json.loads(sys.argv[1]), "env_var": {"WANDB_ENTITY": "our-team"}}
    result = pf.TorchTrainer(train, {"fails": True}, num_devices=2, name="fn", max_failures=1, **services).fit()
    with result.checkpoint.as_directory() as directory:
        files = sorted(os.listdir(directory))
    print("RESULT", json.dumps({"metrics": result.metrics, "files": files, "returned": result.return_value}))

    more_than_half = ray.cluster_resources()["CPU"] // 2 + 1
    trainer = pf.TorchTrainer(count_ranks, num_devices=2, min_devices=1, resources_per_device={"CPU": more_than_half})
    print("WORLD SIZE", trainer.fit().return_value)

    try:
        pf.TorchTrainer(die, num_devices=1, env_var={"WANDB_API_KEY": "hunter2"}, max_failures=0).fit()
    except Exception as err:
        print("RAISED", type(err).__name__)

    pf.TorchTrainer(train, {"fails": True}, num_devices=2, name="fn", max_failures=0).fit()
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


@dataclass(frozen=True)
class Ended:
    """The script after its end: what it left, its exit code and output, and the processes that it left."""

    folder: Path
    root: StorageRoot
    messages: list[dict[str, Any]]
    exit_code: int
    stdout: str
    stderr: str
    left_pids: list[int]


@pytest.fixture(scope="module")
def ended(workbench: Workbench, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("function")
    (folder / "train.py").write_text(SCRIPT)
    (folder / "wandb.py").write_text(WANDB_STAND_IN)
    env = {
        **workbench.env,
        **workbench.ray_env(),
        "PERIFLOW_STORAGE": str(folder / "storage"),
        CREDENTIALS_FILE_VARIABLE: str(folder / "credentials.json"),
        "no_proxy": "127.0.0.1",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CREDENTIALS_FILE_VARIABLE, env[CREDENTIALS_FILE_VARIABLE])
        create_credential("our-wandb", "wandb", {"api_key": "hunter2"})
    with serve_messages() as server:
        plugin = {"webhook": {"url": f"{server.url}/hook"}, "wandb": {"credential_id": "our-wandb"}}
        done = subprocess.run(
            [sys.executable, str(folder / "train.py"), json.dumps(plugin)],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=250,
        )
    left = processes_with(str(folder / "train.py"))
    root = StorageRoot(env["PERIFLOW_STORAGE"])
    return Ended(folder, root, server.documents, done.returncode, done.stdout, done.stderr, left)


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


def test_a_function_job_tells_its_services_and_shows_none_of_their_keys(ended: Ended) -> None:
    assert [message["kind"] for message in ended.messages] == ["attempt_failed", "resumed", "success"]
    cause = "node 0, rank 1: the function raised ValueError: boom right after the save."
    assert ended.messages[0]["cause"] == cause
    sent = [json.loads(line) for line in (ended.folder / "wandb.jsonl").read_text().splitlines()]
    assert sent == [{"loss": 1.0 / step, "step": step} for step in range(1, 9)]
    keys = [line.text for line in read_logs(ended.root, FAILS_ONCE) if line.text.startswith("the key")]
    assert keys == ["the key is *** of our-team"] * 4
    # Ray shows the script what the ranks print.
    assert "hunter2" not in ended.stdout + ended.stderr


def test_an_elastic_function_job_starts_with_what_there_is(ended: Ended) -> None:
    assert "WORLD SIZE 1" in ended.stdout, ended
    assert jobs.read_job(ended.root, ELASTIC).state.status == "success"


def test_the_last_words_of_a_rank_that_dies_are_in_the_log_and_in_the_diagnosis(ended: Ended) -> None:
    assert "RAISED" in ended.stdout
    last_words = [*(f"word {number}" for number in range(30)), "the last word of ***"]
    assert [line.text for line in read_logs(ended.root, DIES) if line.node_rank is not None] == last_words
    state = jobs.read_job(ended.root, DIES).state
    assert state.status == "failed"
    assert (state.message or "").startswith("worker 0 died: its process was killed, or its machine was lost.\n")
    shown = "".join(f"  {line}\n" for line in last_words[-20:])
    assert f"\nLast lines:\n{shown}" in f"{state.message}\n"


def test_a_failing_function_raises_and_the_job_has_the_diagnosis(ended: Ended) -> None:
    assert ended.exit_code == 1
    assert "ValueError: boom right after the save" in ended.stderr
    state = jobs.read_job(ended.root, FAILS).state
    assert state.status == "failed"
    assert "rank 1: the function raised ValueError: boom right after the save" in (state.message or "")
    assert ended.left_pids == []
