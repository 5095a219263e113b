"""``periflow_ray.sweep`` and ``periflow_ray.trainable`` on real Ray, from scripts; and trials of several nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.workbench import Workbench, find_agent, processes_with, wait_until

from periflow_ray import jobs
from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.jobs.logs import read_logs
from periflow_ray.runtime.member.sandbox import Sandbox
from periflow_ray.store.checkpoints import latest_committed, restore
from periflow_ray.store.checkpoints.pins import read_pins
from periflow_ray.sweeps.journal import read_trials

pytestmark = pytest.mark.ray

NUM_STEPS = 40
# The state is the learning rate of each step that was made.
SCRIPT = f"""
import json, os, sys, time
from pathlib import Path
import periflow_ray as pf
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

def train(config):
    import ray.train.torch, torch
    model = ray.train.torch.prepare_model(torch.nn.Linear(1, 1))
    assert not ray.is_initialized()
    context = ray.train.get_context()
    print("rank", context.get_world_rank(), "of", context.get_world_size(), type(model).__name__, config)
    if config["lr"] < 0:
        raise ValueError("a negative learning rate")
    path = Path(os.environ["CKPT_DIR"]) / "lrs.json"
    lrs = json.loads(path.read_text()) if path.exists() else []
    # Else rank 0 may write it anew before rank 1 has read it.
    torch.distributed.barrier()
    pf.init(total_train_steps={NUM_STEPS})
    assert len(lrs) == pf.resumed_step() and pf.hparams()["lr"] == config["lr"]
    while len(lrs) < {NUM_STEPS}:
        with pf.train_step():
            time.sleep(config["pause_s"])
            lrs.append(config["lr"])
        pf.metric({{"loss": 1 - sum(lrs), "epoch": len(lrs) // 10}})
        if len(lrs) % 5 == 0 or pf.is_emergency_save():
            if context.get_world_rank() == 0:
                path.write_text(json.dumps(lrs))
            pf.upload_checkpoint()

def train_in_rays_words(config):
    import ray.train, tempfile
    from steps import MODULE_STEPS
    checkpoint = ray.train.get_checkpoint()
    lrs = json.loads((Path(checkpoint.path) / "lrs.json").read_text()) if checkpoint else []
    while len(lrs) < MODULE_STEPS:
        time.sleep(config["pause_s"])
        lrs.append(config["lr"])
        with tempfile.TemporaryDirectory() as folder:
            if len(lrs) % 10 == 0:
                folder = os.environ["CKPT_DIR"]
            (Path(folder) / "lrs.json").write_text(json.dumps(lrs))
            saved = ray.train.Checkpoint.from_directory(folder) if len(lrs) % 5 == 0 else None
            ray.train.report({{"loss": 1 - sum(lrs), "count": len(lrs)}}, checkpoint=saved)

def tell(grid):
    print("RESULTS", json.dumps([
        {{"job": r.metrics.get("job_id"), "lr": r.config["lr"], "loss": r.metrics.get("loss"),
          "step": r.metrics.get("step"), "error": str(r.error or ""), "rows": len(r.metrics_dataframe),
          "checkpoint": r.checkpoint and sorted(os.listdir(r.checkpoint.path))}} for r in grid]))

if __name__ == "__main__":
    match sys.argv[1:]:
        case ["ranks"]:
            trainer = pf.TorchTrainer(train, {{"lr": 9.0, "pause_s": 0.0}}, num_devices=2, name="pair")
            grid = pf.sweep(trainer, {{"lr": tune.grid_search([-1.0, 0.5])}}, metric="loss", mode="min")
            tell(grid)
            print("BEST", grid.get_best_result().config, grid.num_errors)
        case ["slow"]:
            trainer = pf.TorchTrainer(train_in_rays_words, {{"pause_s": 0.1}}, name="slow")
            rates = {{"train_loop_config": {{"lr": {{"grid": [0.25, 0.5]}}}}}}
            tell(pf.sweep(trainer, rates, metric="loss", mode="min"))
        case ["resume", number]:
            tell(pf.sweep(resume=int(number)))
        case ["tuner", path]:
            trial = pf.trainable(pf.TorchTrainer(train, {{"pause_s": 0.05}}), metric="loss", mode="min", device=0.5)
            pbt = PopulationBasedTraining(
                time_attr="step", perturbation_interval=10, quantile_fraction=0.5, resample_probability=0.0,
                hyperparam_mutations={{"lr": tune.uniform(0.1, 1.0)}})
            config = tune.TuneConfig(metric="loss", mode="min", scheduler=pbt, reuse_actors=True)
            run = tune.RunConfig(name="own", storage_path=path, verbose=0)
            space = {{"lr": tune.grid_search([0.1, 0.4])}}
            grid = tune.Tuner(trial, param_space=space, tune_config=config, run_config=run).fit()
            print("RESULTS", json.dumps([{{"lr": r.config["lr"], "step": r.metrics["step"]}} for r in grid]))
"""


class Script:
    """Runs the script on the workbench's cluster."""

    def __init__(self, bench: Workbench, folder: Path) -> None:
        self.bench = bench
        self._path = folder / "search.py"
        self._path.write_text(SCRIPT)
        (folder / "steps.py").write_text(f"MODULE_STEPS = {NUM_STEPS}\n")

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(self._path), *map(str, arguments)],
            env={**self.bench.env, **self.bench.ray_env()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, (out, err)
        return out


@pytest.fixture
def script(workbench: Workbench, tmp_path: Path) -> Script:
    return Script(workbench, tmp_path)


def read_results(out: str) -> list[dict[str, Any]]:
    (line,) = [line for line in out.splitlines() if line.startswith("RESULTS ")]
    results: list[dict[str, Any]] = json.loads(line.removeprefix("RESULTS "))
    return results


def read_lrs(bench: Workbench, job_id: int, target: Path) -> list[float]:
    """The learning rate of each step in a job's newest checkpoint."""
    newest = latest_committed(bench.root, job_id)
    assert newest is not None
    restore(bench.root, newest, 0, target)
    lrs: list[float] = json.loads((target / "lrs.json").read_text())
    return lrs


def test_a_function_of_two_ranks_is_searched_and_tune_gets_its_results(script: Script, tmp_path: Path) -> None:
    out = script.run("ranks")

    failed, succeeded = read_results(out)
    assert (failed["lr"], failed["loss"], failed["checkpoint"]) == (-1.0, None, None)
    assert "ValueError: a negative learning rate" in failed["error"]
    assert (succeeded["lr"], succeeded["loss"], succeeded["error"]) == (0.5, 1 - NUM_STEPS * 0.5, "")
    assert (succeeded["step"], succeeded["rows"], succeeded["checkpoint"]) == (NUM_STEPS, NUM_STEPS, ["lrs.json"])
    assert "BEST {'lr': 0.5} 1" in out
    lines = [line.text for line in read_logs(script.bench.root, succeeded["job"])]
    assert "rank 1 of 2 DistributedDataParallel {'lr': 0.5, 'pause_s': 0.0}" in "\n".join(lines)
    assert read_lrs(script.bench, succeeded["job"], tmp_path / "state") == [0.5] * NUM_STEPS


def test_a_sweep_of_a_script_is_stopped_by_ctrl_c_and_goes_on(script: Script, tmp_path: Path) -> None:
    bench = script.bench
    process = script.start("slow")
    assert process.stdout is not None
    first = process.stdout.readline()
    sweep_id = int(first.split("(")[1].split(")")[0])
    wait_until(
        lambda: any(trial.step > 8 for trial in read_trials(bench.root, sweep_id).values()), "a trial has made steps"
    )
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "Saving and stopping the trials." in err
    assert "KeyboardInterrupt" in err
    assert jobs.read_state(bench.root, sweep_id).status == "stopped"

    results = read_results(script.run("resume", sweep_id))

    assert [(result["lr"], result["step"], result["error"]) for result in results] == [
        (0.25, NUM_STEPS, ""),
        (0.5, NUM_STEPS, ""),
    ]
    for result in results:
        assert read_lrs(bench, result["job"], tmp_path / str(result["job"])) == [result["lr"]] * NUM_STEPS
    assert [trial.status for trial in read_trials(bench.root, sweep_id).values()] == ["success", "success"]


def test_a_tuner_of_the_users_copies_a_jobs_checkpoint(script: Script, tmp_path: Path) -> None:
    bench = script.bench
    before = {job.record.job_id for job in jobs.list_jobs(bench.root)}
    results = read_results(script.run("tuner", tmp_path / "tune"))

    assert [result["step"] for result in results] == [NUM_STEPS, NUM_STEPS]
    made = [job for job in jobs.list_jobs(bench.root) if job.record.job_id not in before]
    newest = {job.record.job_id: latest_committed(bench.root, job.record.job_id) for job in made}
    ended = [job_id for job_id, found in newest.items() if found is not None and found.step == NUM_STEPS]
    assert len(ended) == 2, [(job.record.job_id, job.state, job.progress) for job in made]
    histories = [read_lrs(bench, job_id, tmp_path / f"job-{job_id}") for job_id in ended]
    assert all(len(lrs) == NUM_STEPS for lrs in histories)
    # One of them went on from the other's steps, with a rate of its own.
    assert any(lrs[0] == 0.4 and lrs[-1] != 0.4 for lrs in histories), histories
    assert all(not read_pins(bench.root, job.record.job_id) for job in made)
    wait_until(lambda: not processes_with(str(Sandbox(bench.root.uri, ended[0], 0).directory)), "nothing is left")


GANG_SCRIPT = f"""
import json, os, time
from pathlib import Path
import torch.distributed as dist
import periflow_ray as pf

dist.init_process_group("gloo")
path = Path(os.environ["CKPT_DIR"]) / f"steps-{{dist.get_rank()}}"
step = int(path.read_text()) if path.exists() else 0
pf.init(total_train_steps={NUM_STEPS})
while step < {NUM_STEPS}:
    with pf.train_step():
        dist.barrier()
        time.sleep(0.1)
    step += 1
    pf.metric({{"loss": float(os.environ["x"]) / step}})
    if step % 10 == 0:
        path.write_text(str(step))
        pf.upload_checkpoint()
"""


def test_a_trial_of_two_nodes_outlives_the_loss_of_one(workbench: Workbench, tmp_path: Path) -> None:
    workspace = tmp_path / "app"
    workspace.mkdir()
    (workspace / "main.py").write_text(GANG_SCRIPT)
    template = {
        "name": "gang",
        "vm": "local",
        "num_devices": 2,
        "max_failures": 1,
        "job_setting": {
            "type": "custom",
            "launch_mode": "device",
            "docker": {"command": "cd app && python main.py"},
        },
        "checkpoint": {"output_checkpoint_dir": "/ckpt"},
    }
    sweep = {"metric": "loss", "mode": "min", "parameters": {"x": 2.0}, "num_trials": 1}
    (tmp_path / "t.yml").write_text(json.dumps(template))
    (tmp_path / "s.yml").write_text(json.dumps(sweep))
    files = ["-f", tmp_path / "t.yml", "--sweep", tmp_path / "s.yml", "-d", workspace]
    outcome = workbench.run("sweep", "run", "--local", "--devices-per-node", "1", *files, "--no-follow", "--yes")
    assert outcome.exit_code == 0, outcome.stderr
    sweep_id = int(outcome.stdout.split("(")[1].split(")")[0])
    root = workbench.root
    wait_until(lambda: any(trial.step > 11 for trial in read_trials(root, sweep_id).values()), "it has saved")
    job_id = read_trials(root, sweep_id)[1].job_ids[0]
    agent = find_agent(str(Sandbox(root.uri, job_id, 1).directory))
    assert agent is not None
    os.kill(agent, signal.SIGKILL)
    wait_until(lambda: jobs.read_state(root, sweep_id).has_ended, "the sweep ends", 120)

    trial = read_trials(root, sweep_id)[1]
    assert (trial.status, trial.step, trial.job_ids) == ("success", NUM_STEPS, [job_id])
    lost, last = read_attempts(root, job_id)
    assert (lost.cause, last.resumed_step >= 10) == ("lost", True)
    newest = latest_committed(root, job_id)
    assert newest is not None
    assert (newest.step, sorted(file.path for file in newest.files)) == (NUM_STEPS, ["steps-0", "steps-1"])
