"""Sweeps on real Ray, from the command line to the best trial, through every loss."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.workbench import Workbench, find_agent, find_driver, processes_with, wait_until

from periflow_ray import jobs
from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.jobs.logs import read_logs
from periflow_ray.plan import JobPlan
from periflow_ray.runtime.member.sandbox import Sandbox
from periflow_ray.store.checkpoints import latest_committed, restore
from periflow_ray.store.checkpoints.pins import read_pins
from periflow_ray.store.documents import read_document
from periflow_ray.store.keys import job_key
from periflow_ray.sweeps.journal import Trial, read_trials

pytestmark = pytest.mark.ray

NUM_STEPS = 100
SECRET = "a-key-of-the-team"
# Each step hashes the state before it: the last state tells whether one was lost or made twice.
SCRIPT = f"""
import hashlib, json, os, sys, time
from pathlib import Path
import periflow_ray as pf

x, name = float(sys.argv[1]), sys.argv[2]
print("key is", os.environ.get("TEAM_KEY"), flush=True)
assert pf.hparams() == {{"x": x, "name": name}} and os.environ["x"] == sys.argv[1]
path = Path(os.environ["CKPT_DIR"]) / "state.json"
step, state = json.loads(path.read_text()) if path.exists() else (0, name)
pf.init(total_train_steps={NUM_STEPS})
while step < {NUM_STEPS}:
    with pf.train_step():
        state = hashlib.sha256(f"{{state}} {{step}}".encode()).hexdigest()
        time.sleep(float(os.environ.get("STEP_S", "0.05")))
    step += 1
    pf.metric({{"loss": x / step, "epoch": step // 10}})
    if step % 10 == 0 or pf.is_emergency_save():
        path.write_text(json.dumps([step, state]))
        pf.upload_checkpoint()
"""
TEMPLATE = """\
name: chain
vm: local
num_devices: 1
max_failures: 2
job_setting:
  type: custom
  launch_mode: device
  docker:
    command: cd /workspace/app && python main.py ${x} $name
checkpoint:
  output_checkpoint_dir: /workspace/ckpt
"""
Start = Callable[..., int]


@pytest.fixture
def start(workbench: Workbench, tmp_path: Path) -> Start:
    """Starts a sweep over ``x`` and ``name``; returns its number."""

    def run(bench: Workbench = workbench, options: tuple[str, ...] = (), **given: Any) -> int:
        workspace = tmp_path / "app"
        workspace.mkdir()
        (workspace / "main.py").write_text(SCRIPT)
        (tmp_path / "pf-template.yml").write_text(TEMPLATE)
        parameters = {"x": {"grid": [3.0, 1.0]}, "name": {"grid": ["a", "b"]}}
        sweep = {"metric": "loss", "mode": "min", "max_concurrent": 2, "parameters": parameters, **given}
        (tmp_path / "sweep.yml").write_text(json.dumps(sweep))
        files = ["-f", tmp_path / "pf-template.yml", "--sweep", tmp_path / "sweep.yml", "-d", workspace]
        outcome = bench.run("sweep", "run", "--local", *files, "--no-follow", "--yes", *options)
        assert outcome.exit_code == 0, outcome.stderr
        return int(outcome.stdout.split("(")[1].split(")")[0])

    return run


def ask(bench: Workbench, *arguments: object) -> Any:
    outcome = bench.run(*arguments, "-o", "json")
    assert outcome.exit_code == 0, outcome.stderr
    return json.loads(outcome.stdout)


def find_running(bench: Workbench, sweep_id: int, min_step: int, max_step: int = NUM_STEPS) -> list[Trial]:
    """Trials that run and have come to a step."""
    trials = read_trials(bench.root, sweep_id).values()
    return [trial for trial in trials if trial.status == "running" and min_step <= trial.step <= max_step]


def read_parameters(bench: Workbench, job_id: int) -> dict[str, Any]:
    """What a trial's job was given."""
    return read_document(bench.root, job_key(job_id, "plan.json"), JobPlan).hparams or {}


def assert_whole(bench: Workbench, trial: Trial, tmp_path: Path) -> None:
    """Its last checkpoint has every step once, and its job says so."""
    job_id = trial.job_ids[-1]
    newest = latest_committed(bench.root, job_id)
    assert newest is not None
    restore(bench.root, newest, 0, tmp_path / f"state-{trial.number}")
    step, state = json.loads((tmp_path / f"state-{trial.number}" / "state.json").read_text())
    expected = str(trial.parameters["name"])
    for index in range(NUM_STEPS):
        expected = hashlib.sha256(f"{expected} {index}".encode()).hexdigest()
    assert (step, state) == (NUM_STEPS, expected)
    assert jobs.read_state(bench.root, job_id).status == "success"
    assert trial.step == NUM_STEPS


def test_a_sweep_outlives_its_driver_an_agent_and_a_notice_and_runs_each_trial_once(
    workbench: Workbench, start: Start, tmp_path: Path
) -> None:
    # Slow enough for all that happens to a trial before its end.
    sweep_id = start(options=("--env", "STEP_S=0.1"))
    root = workbench.root
    wait_until(lambda: bool(find_running(workbench, sweep_id, 15)), "a trial has saved")
    driver = find_driver(root.uri, sweep_id)
    assert driver is not None
    os.kill(driver, signal.SIGKILL)
    wait_until(lambda: find_driver(root.uri, sweep_id) not in (None, driver), "the driver is started again")
    wait_until(lambda: any(trial.is_final for trial in read_trials(root, sweep_id).values()), "a trial has ended")
    found: list[tuple[Trial, int]] = []

    def find_victim() -> bool:
        for trial in find_running(workbench, sweep_id, 15, 50):
            agent = find_agent(str(Sandbox(root.uri, trial.job_ids[0], 0).directory))
            if agent is not None:
                found.append((trial, agent))
        return bool(found)

    wait_until(find_victim, "another trial has saved")
    victim, agent = found[0]
    os.kill(agent, signal.SIGKILL)
    wait_until(lambda: len(read_attempts(root, victim.job_ids[0])) > 1, "the trial goes on")
    # The command takes two seconds to be heard, and the trial is not to end before.
    young: list[Trial] = []
    wait_until(lambda: bool(young.extend(find_running(workbench, sweep_id, 5, 60)) or young), "a trial begins")
    outcome = workbench.run("job", "drill", young[0].job_ids[0], "--notice", "20s")
    assert "lost 0 steps" in outcome.stdout, outcome.stderr
    assert ask(workbench, "sweep", "view", sweep_id)["status"] == "running"
    wait_until(lambda: jobs.read_state(root, sweep_id).has_ended, "the sweep has ended")
    assert jobs.read_state(root, sweep_id).status == "success"
    trials = read_trials(root, sweep_id)
    assert sorted(trials) == [1, 2, 3, 4]
    assert len({(trial.parameters["x"], trial.parameters["name"]) for trial in trials.values()}) == 4
    for trial in trials.values():
        assert (trial.status, len(trial.job_ids)) == ("success", 1)
        assert_whole(workbench, trial, tmp_path)
    best = ask(workbench, "sweep", "best", sweep_id)
    assert (best["parameters"]["x"], best["best"]) == (1.0, pytest.approx(1 / NUM_STEPS))
    listed = ask(workbench, "job", "list", "--sweep", sweep_id, "--all")
    assert sorted(job["number"] for job in listed) == sorted(trial.job_ids[0] for trial in trials.values())
    assert {job["number"] for job in ask(workbench, "job", "list", "--all")}.isdisjoint(
        trial.job_ids[0] for trial in trials.values()
    )


def test_trials_that_are_worse_end_early_with_all_their_processes(workbench: Workbench, start: Start) -> None:
    scheduler = {"type": "asha", "max_t": NUM_STEPS, "grace_period": 5, "reduction_factor": 3}
    parameters = {"x": {"grid": [1.0, 9.0, 8.0, 7.0]}, "name": "a"}
    sweep_id = start(parameters=parameters, scheduler=scheduler, max_concurrent=1, search="grid")
    wait_until(lambda: jobs.read_state(workbench.root, sweep_id).has_ended, "the sweep has ended")
    trials = read_trials(workbench.root, sweep_id)
    assert {trial.parameters["x"]: trial.status for trial in trials.values()} == {
        1.0: "success",
        9.0: "early",
        8.0: "early",
        7.0: "early",
    }
    # The one that came to the end of the scheduler came to its own.
    (winner,) = [trial for trial in trials.values() if trial.status == "success"]
    assert jobs.read_state(workbench.root, winner.job_ids[-1]).status == "success"
    assert all(trial.step < 30 for trial in trials.values() if trial.status == "early")
    sandboxes = [str(Sandbox(workbench.root.uri, trial.job_ids[0], 0).job_dir) for trial in trials.values()]
    wait_until(lambda: not any(processes_with(sandbox) for sandbox in sandboxes), "the trials' processes are gone", 5)


def test_a_worse_trial_goes_on_from_the_checkpoint_of_a_better_one_whatever_is_killed(
    workbench: Workbench, start: Start, tmp_path: Path
) -> None:
    scheduler = {"type": "pbt", "perturbation_interval": 15, "quantile_fraction": 0.5, "resample_probability": 0}
    sweep_id = start(
        parameters={"x": {"uniform": [0.5, 10]}, "name": "a"},
        points=[{"x": 1.0}, {"x": 9.0}],
        num_trials=2,
        scheduler=scheduler,
    )
    root = workbench.root
    wait_until(lambda: any(trial.clones for trial in read_trials(root, sweep_id).values()), "a trial was copied")
    driver = find_driver(root.uri, sweep_id)
    assert driver is not None
    os.kill(driver, signal.SIGKILL)
    wait_until(lambda: find_driver(root.uri, sweep_id) not in (None, driver), "the driver is started again")
    agents: list[int] = []

    def find_agents() -> bool:
        job_ids = [trial.job_ids[-1] for trial in read_trials(root, sweep_id).values() if trial.status == "running"]
        found = [find_agent(str(Sandbox(root.uri, job_id, 0).directory)) for job_id in job_ids]
        agents[:] = [pid for pid in found if pid is not None]
        return bool(agents)

    wait_until(find_agents, "a trial goes on")
    os.kill(agents[0], signal.SIGKILL)
    wait_until(lambda: jobs.read_state(root, sweep_id).has_ended, "the sweep has ended")
    trials = read_trials(root, sweep_id)
    assert not any(read_pins(root, job_id) for trial in trials.values() for job_id in trial.job_ids)
    better, worse = trials.values()
    assert [trial.status for trial in (better, worse)] == ["success", "success"]
    assert worse.clones
    assert worse.clones[0].checkpoint.startswith(f"{better.job_ids[0]}/step-")
    for trial in (better, worse):
        # Each job but the first goes on from where the journal says, with a parameter that is a little changed.
        for clone, job_id in zip(trial.clones, trial.job_ids[1:], strict=True):
            source_job, _, name = clone.checkpoint.partition("/")
            assert clone.job_id == job_id
            assert int(source_job) in trials[clone.donor].job_ids
            assert name == f"step-{clone.step:08d}"
            assert read_attempts(workbench.root, job_id)[0].resumed_step == clone.step
            parameters = {each: read_parameters(workbench, each) for each in (int(source_job), job_id)}
            changed = parameters[job_id]["x"] / parameters[int(source_job)]["x"]
            assert changed in (pytest.approx(0.8), pytest.approx(1.2)) or parameters[job_id]["x"] == 0.5
        assert_whole(workbench, trial, tmp_path)
    # The bad one is not gone on with.
    assert worse.parameters["x"] < 2


@pytest.mark.long
def test_a_sweep_in_a_bucket_has_its_journal_and_its_checkpoints_there(
    cloud: Workbench, start: Start, tmp_path: Path
) -> None:
    scheduler = {"type": "pbt", "perturbation_interval": 30, "quantile_fraction": 0.5}
    parameters = {"x": {"uniform": [0.5, 10]}, "name": "a"}
    sweep_id = start(cloud, parameters=parameters, points=[{"x": 1.0}, {"x": 9.0}], num_trials=2, scheduler=scheduler)
    wait_until(lambda: jobs.read_state(cloud.root, sweep_id).has_ended, "the sweep has ended")
    assert jobs.read_state(cloud.root, sweep_id).status == "success"
    for trial in read_trials(cloud.root, sweep_id).values():
        assert_whole(cloud, trial, tmp_path)
    assert ask(cloud, "sweep", "best", sweep_id)["checkpoint"].endswith(f"step-{NUM_STEPS:08d}")


def test_a_metric_that_is_misspelt_ends_the_sweep_with_the_names_that_there_are(
    workbench: Workbench, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(workbench.env, "TEAM_KEY", SECRET)
    sweep_id = start(metric="losss", options=("--secret", "TEAM_KEY"))
    wait_until(lambda: jobs.read_state(workbench.root, sweep_id).has_ended, "the sweep has ended")
    state = jobs.read_state(workbench.root, sweep_id)
    assert state.status == "failed"
    assert state.message == (
        "the script does not report the metric 'losss'; it reported epoch, loss. Did you mean 'loss'?"
    )
    assert len(read_trials(workbench.root, sweep_id)) < 4
    # Of its secrets nothing lies about, although each trial had them.
    stored = [path for path in Path(workbench.root.uri).rglob("*") if path.is_file()]
    assert [path for path in stored if SECRET.encode() in path.read_bytes()] == []
    log = read_logs(workbench.root, read_trials(workbench.root, sweep_id)[1].job_ids[0])
    assert any("key is ***" in line.text for line in log)
