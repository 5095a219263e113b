"""Every example runs as its README says, and what it leaves can be looked at afterwards."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.workbench import Workbench

from periflow_ray import jobs
from periflow_ray.jobs.metrics import read_metrics
from periflow_ray.store import checkpoints

pytestmark = pytest.mark.ray

EXAMPLES_DIR = Path(__file__).parents[2] / "examples"
# Whole jobs of the first two run in test_examples_in_buckets; the third resumes in test_examples_resume_exactly.
ELSEWHERE = [pytest.param(name, marks=pytest.mark.long) for name in ("cifar", "pth-lightning", "dkt")]


@pytest.mark.parametrize("name", [*ELSEWHERE, "huggingface"])
def test_an_example_trains_on_two_devices(workbench: Workbench, name: str) -> None:
    example = EXAMPLES_DIR / name
    outcome, job = workbench.submit(example / "pf-template.yml", example, "--num-devices", 2)

    assert outcome.exit_code == 0, outcome
    assert (job.record.num_nodes, job.state.status) == (2, "success")
    job_id = job.record.job_id
    latest = checkpoints.latest_committed(workbench.root, job_id)
    assert latest is not None
    assert latest.step == job.progress.step > 0
    losses = [m.values["loss"] for m in read_metrics(workbench.root, job_id) if "loss" in m.values]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert {m.rank for m in read_metrics(workbench.root, job_id, rank=None)} == {0, 1}
    # From a new shell: every view knows the job.
    assert json.loads(workbench.run("job", "view", job_id, "-o", "json").stdout)["status"] == "success"
    assert job_id in {row["number"] for row in json.loads(workbench.run("job", "list", "-o", "json").stdout)}
    assert workbench.run("job", "log", job_id, "-n", 5).stdout.count("\n") == 5
    shown = workbench.run("job", "metrics", "show", job_id, "--name", "loss", "-o", "json")
    assert shown.exit_code == 0, shown


def run_sweep(workbench: Workbench, template: Path, sweep: Path, shorter: dict[str, str], tmp_path: Path) -> Any:
    """Run an example's sweep with some lines changed; returns its best trial."""
    text = sweep.read_text()
    for line, shorter_line in shorter.items():
        assert line in text
        text = text.replace(line, shorter_line)
    (tmp_path / "sweep.yml").write_text(text)
    options = ["--local", "-f", template, "--sweep", tmp_path / "sweep.yml", "-d", template.parent, "--yes"]
    outcome = workbench.run("sweep", "run", *options)

    assert outcome.exit_code == 0, outcome
    sweep_id = int(outcome.stdout.split("(")[1].split(")")[0])
    return json.loads(workbench.run("sweep", "best", sweep_id, "-o", "json").stdout)


def test_the_sweep_example_finds_a_best_trial(workbench: Workbench, tmp_path: Path) -> None:
    example = EXAMPLES_DIR / "sweep"
    shorter = {"num_trials: 12": "num_trials: 2"}
    best = run_sweep(workbench, example / "pf-template.yml", example / "sweep.yml", shorter, tmp_path)
    assert best["best"] > 0.5
    assert best["checkpoint"] == f"{best['jobs'][0]}/step-{best['step']:08d}"


def test_the_sweep_example_trains_a_population(workbench: Workbench, tmp_path: Path) -> None:
    example = EXAMPLES_DIR / "sweep"
    shorter = {
        "num_trials: 4": "num_trials: 2",
        "total_steps: 10000": "total_steps: 2000",
        "interval: 1000": "interval: 200",
    }
    best = run_sweep(workbench, example / "pf-template.yml", example / "pbt.yml", shorter, tmp_path)
    assert best["best"] > 0.8
    assert (best["status"], best["step"]) == ("success", 2000)


@pytest.mark.long
def test_the_lightning_example_is_searched_with_the_same_script(workbench: Workbench, tmp_path: Path) -> None:
    example = EXAMPLES_DIR / "pth-lightning"
    shorter = {"num_trials: 8": "num_trials: 2"}
    best = run_sweep(workbench, example / "sweep-template.yml", example / "sweep.yml", shorter, tmp_path)
    assert best["best"] < 0.06
    assert best["parameters"]["batch_size"] in (16, 32, 64)


@pytest.mark.parametrize("script", ["main.py", pytest.param("main_lightning.py", marks=pytest.mark.long)])
def test_the_function_example_returns_rays_result(workbench: Workbench, tmp_path: Path, script: str) -> None:
    # A copy, because workers get the script's folder on their path and may leave byte code there.
    folder = shutil.copytree(EXAMPLES_DIR / "function", tmp_path / "function")
    done = subprocess.run(
        [sys.executable, script, "--num-devices", "2"],
        cwd=folder,
        env={**workbench.env, **workbench.ray_env()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )

    assert done.returncode == 0, (done.stdout, done.stderr)
    newest = jobs.list_jobs(workbench.root)[0]
    assert (newest.state.status, newest.record.num_devices) == ("success", 2)
    assert checkpoints.latest_committed(workbench.root, newest.record.job_id) is not None
