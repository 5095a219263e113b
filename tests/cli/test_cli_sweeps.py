"""The commands of sweeps, on journals as a driver leaves them.

Long because each command of the group is asked of the same journal.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from click.testing import Result
from support.sample_jobs import build_record

from periflow_ray.cli import job_resume
from periflow_ray.cli.sweep_pictures import KINDS
from periflow_ray.jobs import (
    JobState,
    erase_job,
    list_jobs,
    liveness,
    mark_trial,
    read_jobs,
    read_state,
    write_record,
    write_state,
)
from periflow_ray.jobs.resumes import read_resumed_attempts
from periflow_ray.plan import JobPlan, build_plan, local_vm
from periflow_ray.plan.catalogue import load_catalogue
from periflow_ray.spec import SweepSpec, load_template
from periflow_ray.store.documents import write_document
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot
from periflow_ray.sweeps.documents import write_sweep
from periflow_ray.sweeps.journal import Journal, read_trials

RunCli = Callable[..., Result]
TEMPLATE = """\
name: digits
vm: local
num_devices: 1
job_setting:
  type: custom
  docker:
    env_var: {EPOCHS: 3}
    command: cd /workspace/app && python main.py --lr ${lr} --opt $opt
checkpoint:
  output_checkpoint_dir: /workspace/ckpt
"""
SWEEP: dict[str, Any] = {
    "metric": "loss",
    "mode": "min",
    "num_trials": 4,
    "parameters": {
        "lr": {"uniform": [0, 1]},
        "opt": {"choice": ["sgd", "adam"]},
        "beta": {"uniform": [0, 1], "when": {"opt": "adam"}},
        "seed": 7,
    },
}
SWEEP_ID = 10


def make_plan() -> JobPlan:
    spec = load_template(TEMPLATE).spec
    return build_plan(spec, local_vm(num_gpus=0), storage_uri="/storage", num_local_cpus=2)


@pytest.fixture
def sweep(root: StorageRoot) -> StorageRoot:
    """A sweep that has ended: trial 2 is the best, 3 was stopped early, 4 has failed."""
    write_record(root, build_record(SWEEP_ID, name="digits", experiment=None))
    write_state(root, SWEEP_ID, JobState("success", 100.0, 200.0, 200.0))
    write_document(root, job_key(SWEEP_ID, "plan.json"), make_plan())
    write_sweep(root, SWEEP_ID, SweepSpec.model_validate(SWEEP))
    journal = Journal(root, SWEEP_ID)
    trials: list[tuple[dict[str, Any], list[float], Any]] = [
        ({"lr": 0.5, "opt": "sgd", "seed": 7}, [0.9, 0.8], ("success", None, 1)),
        ({"lr": 0.25, "opt": "adam", "beta": 0.5, "seed": 7}, [0.7, 0.1, 0.2], ("success", None, 2)),
        ({"lr": 0.75, "opt": "sgd", "seed": 7}, [math.nan], ("early", "stopped early by asha at step 10", 1)),
        ({"lr": 0.1, "opt": "sgd", "seed": 7}, [], ("failed", "exit code 1", 1)),
    ]
    for number, (parameters, values, end) in enumerate(trials, start=1):
        job_id = SWEEP_ID + number
        journal.begin(number, job_id, parameters, f"tune-{number}")
        for index, value in enumerate(values, start=1):
            journal.report(number, 10 * index, value)
        journal.end(number, *end)
        journal.flush()
        record = build_record(job_id, name=f"digits-{number}")
        write_record(root, dataclasses.replace(record, sweep=SWEEP_ID, trial=number))
        write_state(root, job_id, JobState("failed" if number == 4 else "success", 100.0, 150.0, 150.0, 1))
    return root


def ask(run_cli: RunCli, *words: str) -> Any:
    result = run_cli(*words, "-o", "json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_the_best_trial_comes_first_and_those_without_a_value_last(run_cli: RunCli, sweep: StorageRoot) -> None:
    told = ask(run_cli, "sweep", "view", str(SWEEP_ID))
    assert (told["status"], told["num_trials"], told["metric"]) == ("success", 4, "loss")
    shown = [(trial["trial"], trial["status"], trial["best"], trial["step"]) for trial in told["trials"]]
    assert shown == [(2, "success", 0.1, 30), (1, "success", 0.8, 20), (3, "early", None, 10), (4, "failed", None, 0)]
    table = run_cli("sweep", "view", str(SWEEP_ID)).stdout
    assert "Sweep 10: success. 4 of 4 trials have ended. Best: the lowest loss." in table
    assert "│ 2     │ 0.25 │ adam │ 0.5  │ 0.1" in table
    assert re.search("failed .*exit code 1", table)
    # The same in all trials.
    assert "seed" not in table


def test_what_trials_cost_is_shown_where_machines_have_a_price(run_cli: RunCli, sweep: StorageRoot) -> None:
    assert ask(run_cli, "sweep", "view", str(SWEEP_ID))["cost_usd"] is None
    plan = make_plan().model_copy(update={"price_per_hour_usd": 36.0})
    write_document(sweep, job_key(SWEEP_ID, "plan.json"), plan)
    told = ask(run_cli, "sweep", "view", str(SWEEP_ID))
    assert told["cost_usd"] == pytest.approx(sum(trial["duration_s"] for trial in told["trials"]) / 100, abs=0.001)
    assert "Cost" in run_cli("sweep", "view", str(SWEEP_ID)).stdout


def test_a_sweep_that_has_ended_is_watched_once(run_cli: RunCli, sweep: StorageRoot) -> None:
    result = run_cli("sweep", "view", str(SWEEP_ID), "--watch")
    assert (result.exit_code, result.stdout.count("Sweep 10: success")) == (0, 1)
    assert run_cli("sweep", "view", str(SWEEP_ID), "--watch", "-o", "json").exit_code == 2


def test_more_trials_than_fit_are_counted(run_cli: RunCli, sweep: StorageRoot) -> None:
    result = run_cli("sweep", "view", str(SWEEP_ID), "-n", "1")
    assert result.stderr == f"3 more: periflow-ray sweep view {SWEEP_ID} --all\n"


def test_lists_of_jobs_have_the_sweep_and_lists_of_a_sweep_its_trials(run_cli: RunCli, sweep: StorageRoot) -> None:
    assert [job["number"] for job in ask(run_cli, "job", "list")] == [SWEEP_ID]
    assert [job["number"] for job in ask(run_cli, "job", "list", "--sweep", str(SWEEP_ID))] == [14, 13, 12, 11]
    (listed,) = ask(run_cli, "sweep", "list")
    assert (listed["number"], listed["num_ended"], listed["best"], listed["best_trial"]) == (SWEEP_ID, 4, 0.1, 2)


def test_lists_of_jobs_and_of_sweeps_read_no_document_of_a_trial(
    run_cli: RunCli, sweep: StorageRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job_id in range(SWEEP_ID + 1, SWEEP_ID + 5):
        mark_trial(sweep, job_id)
        sweep.write_bytes(job_key(job_id, "job.json"), b"nobody reads this")
    for command in (("job", "list"), ("sweep", "list")):
        result = run_cli(*command, "-o", "json")
        assert [each["number"] for each in json.loads(result.stdout)] == [SWEEP_ID]
        assert result.stderr == ""
    assert run_cli("job", "list", "--sweep", str(SWEEP_ID)).stderr.count("'jobs/1") == 4
    unknown = run_cli("job", "list", "--sweep", "99")
    assert (unknown.exit_code, "there is no sweep 99" in unknown.stderr) == (2, True)


def test_the_best_trial_becomes_a_template(run_cli: RunCli, sweep: StorageRoot, tmp_path: Path) -> None:
    path = tmp_path / "best.yml"
    told = ask(run_cli, "sweep", "best", str(SWEEP_ID), "--template", str(path))
    assert (told["trial"], told["best"], told["jobs"], told["checkpoint"]) == (2, 0.1, [12], None)
    spec = load_template(path.read_text(), known_vms=load_catalogue()).spec
    docker = spec.job_setting.docker
    assert docker.command == make_plan().command
    variables = {name: value for name, value in docker.env_var.items() if not name.startswith("PERIFLOW_")}
    assert variables == {"EPOCHS": "3", "lr": "0.25", "opt": "adam", "beta": "0.5", "seed": "7"}
    assert json.loads(docker.env_var["PERIFLOW_HPARAMS"]) == told["parameters"]
    assert (spec.vm, spec.num_devices, spec.name) == (("local",), 1, "digits-best")


def test_trials_are_written_to_a_file_with_the_same_columns_each(
    run_cli: RunCli, sweep: StorageRoot, tmp_path: Path
) -> None:
    for ending in ("csv", "parquet", "json"):
        assert run_cli("sweep", "export", str(SWEEP_ID), "--path", str(tmp_path / f"t.{ending}")).exit_code == 0
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["trial"], row["lr"], row["beta"], row["best"], row["jobs"]) for row in rows] == [
        ("2", "0.25", "0.5", "0.1", "12"),
        ("1", "0.5", "", "0.8", "11"),
        ("3", "0.75", "", "", "13"),
        ("4", "0.1", "", "", "14"),
    ]
    table = pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert [row["best"] for row in table] == [0.1, 0.8, None, None]
    assert [row["last"] for row in json.loads((tmp_path / "t.json").read_text())] == [0.2, 0.8, "NaN", None]
    result = run_cli("sweep", "export", str(SWEEP_ID), "--path", "trials.xlsx")
    assert (result.exit_code, "ends in none of .csv, .parquet, .json" in result.stderr) == (2, True)


def test_a_sweep_is_drawn_into_one_page_or_one_picture(run_cli: RunCli, sweep: StorageRoot, tmp_path: Path) -> None:
    page = tmp_path / "sweep.html"
    assert run_cli("sweep", "plot", str(SWEEP_ID), "--path", str(page)).exit_code == 0
    text = page.read_text()
    assert re.findall("<h2>(.*)</h2>", text) == [kind for kind in KINDS if kind != "lineage"]
    assert text.count("<svg") == len(KINDS) - 1
    # It needs no other file, and nothing from elsewhere.
    assert re.findall(r"(?:src|xlink:href)=.(?!#)", text) == []
    for kind in KINDS:
        picture = tmp_path / f"{kind}.png"
        assert run_cli("sweep", "plot", str(SWEEP_ID), "--path", str(picture), "--kind", kind).exit_code == 0
        assert picture.read_bytes().startswith(b"\x89PNG")
    for options, problem in (
        (["--path", "x.png"], "a PNG has one picture: give one --kind"),
        (["--path", "x.svg"], "must end in .html or .png"),
        (["--path", "x.png", "--kind", "x"], "is not one of"),
    ):
        result = run_cli("sweep", "plot", str(SWEEP_ID), *options)
        assert (result.exit_code, problem in result.stderr) == (2, True)


def test_a_page_without_matplotlib_names_the_extra(
    run_cli: RunCli, sweep: StorageRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run_cli("sweep", "plot", str(SWEEP_ID), "--path", str(tmp_path / "sweep.html"))
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: pictures of sweeps need matplotlib, which is not installed: pip install 'periflow-ray[plot]'.\n",
    )


def test_failed_trials_are_to_run_again_when_the_sweep_is_resumed(run_cli: RunCli, sweep: StorageRoot) -> None:
    assert run_cli("sweep", "retry", str(SWEEP_ID)).exit_code == 2
    result = run_cli("sweep", "retry", str(SWEEP_ID), "--failed")
    assert result.stdout == f"Trials to run again: 4. Run them: periflow-ray sweep resume {SWEEP_ID}\n"
    assert [trial.is_final for trial in read_trials(sweep, SWEEP_ID).values()] == [True, True, True, False]
    assert read_state(sweep, SWEEP_ID).status == "stopped"
    # It has all its restarts again.
    assert read_resumed_attempts(sweep, 14) == {1}
    assert "no trial" in run_cli("sweep", "retry", str(SWEEP_ID), "--failed").stderr


def test_a_trial_alone_is_not_resumed(run_cli: RunCli, sweep: StorageRoot) -> None:
    result = run_cli("job", "resume", "14")
    assert result.exit_code == 2
    assert f"job 14 is trial 4 of sweep {SWEEP_ID}" in result.stderr
    assert f"periflow-ray sweep resume {SWEEP_ID}" in result.stderr


def test_a_sweep_whose_trials_share_a_device_does_not_go_on_with_trials_of_two_gpus(
    run_cli: RunCli, sweep: StorageRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state(sweep, SWEEP_ID, JobState("stopped", 100.0, 200.0, 200.0))
    write_sweep(sweep, SWEEP_ID, SweepSpec.model_validate({**SWEEP, "resources": {"device": 0.5}}))
    monkeypatch.setattr(job_resume, "count_gpus", lambda: 2)
    result = run_cli("sweep", "resume", str(SWEEP_ID), "--local", "--num-devices", "2")
    assert result.exit_code == 2
    assert "resources.device is 0.5, and a trial has 2 devices on 1 nodes" in result.stderr


def test_a_sweep_is_deleted_with_its_trials_and_no_other_way(run_cli: RunCli, sweep: StorageRoot) -> None:
    refused = run_cli("job", "delete", str(SWEEP_ID), "--yes")
    assert (refused.exit_code, f"periflow-ray sweep delete {SWEEP_ID}" in refused.stderr) == (2, True)
    assert run_cli("sweep", "delete", str(SWEEP_ID), input="n\n").exit_code == 1
    assert len(read_jobs(sweep, range(SWEEP_ID, SWEEP_ID + 5))) == 5
    assert run_cli("sweep", "delete", str(SWEEP_ID), "--yes").stdout == f"Deleted sweep {SWEEP_ID} and 4 trials.\n"
    assert read_jobs(sweep, range(SWEEP_ID, SWEEP_ID + 5)) == []


def test_a_sweep_whose_trials_seem_to_run_is_deleted_whole_or_not_at_all(
    run_cli: RunCli, sweep: StorageRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "WATCH_S", 0.1)
    # 11 was deleted by a command that was killed, 12 never began, of 13 the driver made no more than the plan.
    erase_job(sweep, 11)
    write_state(sweep, 12, JobState("waiting"))
    sweep.delete(job_key(13, "job.json"))
    sweep.delete(job_key(13, "state.json"))
    write_document(sweep, job_key(13, "plan.json"), make_plan())
    write_state(sweep, 14, JobState("running", 100.0, None, time.time(), 1))
    result = run_cli("sweep", "delete", str(SWEEP_ID), "--yes")
    assert (result.exit_code, "seem to run: jobs 14. Stop them first: periflow-ray job stop 14" in result.stderr) == (
        2,
        True,
    )
    assert [job.record.job_id for job in read_jobs(sweep, range(11, 15))] == [14, 12]
    write_state(sweep, 14, JobState("running", 100.0, None, 150.0, 1))
    assert run_cli("sweep", "delete", str(SWEEP_ID), "--yes").exit_code == 0
    assert [sweep.list_names(job_key(job_id)) for job_id in range(SWEEP_ID, SWEEP_ID + 5)] == [["claim"]] * 5


def test_what_is_no_sweep_is_an_error_that_says_what_to_do(run_cli: RunCli, sample_root: StorageRoot) -> None:
    for command in ("view", "best", "retry", "delete"):
        result = run_cli("sweep", command, "1")
        assert result.exit_code == 2
        assert "there is no sweep 1" in result.stderr
        assert "periflow-ray sweep list" in result.stderr


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., list[str]]:
    """Writes a template, a sweep and a script; returns the options that name them."""

    def run(script: str = "", command: str = "python main.py ${lr} ${opt} ${beta} ${seed}", **sweep: Any) -> list[str]:
        workspace = tmp_path / "app"
        workspace.mkdir(exist_ok=True)
        (workspace / "main.py").write_text(script)
        template = TEMPLATE.replace("cd /workspace/app && python main.py --lr ${lr} --opt $opt", command)
        (tmp_path / "t.yml").write_text(template)
        (tmp_path / "s.yml").write_text(json.dumps({**SWEEP, **sweep}))
        return ["-f", str(tmp_path / "t.yml"), "--sweep", str(tmp_path / "s.yml"), "-d", str(workspace)]

    return run


def test_a_dry_run_shows_the_first_trials_commands(
    run_cli: RunCli, write: Callable[..., list[str]], root: StorageRoot
) -> None:
    command = "python main.py --width ${width} --name $name"
    options = write(command=command, parameters={"width": {"grid": [1, 2]}, "name": "x"}, num_trials=2)
    result = run_cli("sweep", "run", "--dry-run", *options)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[1:] == [
        "Trial 1: python main.py --width 1 --name x",
        "Trial 2: python main.py --width 2 --name x",
    ]
    assert list_jobs(root) == []


def test_a_parameter_that_nothing_uses_is_an_error(run_cli: RunCli, write: Callable[..., list[str]]) -> None:
    command = "python main.py ${lr} $opt $beta"
    result = run_cli("sweep", "run", "--dry-run", *write(command=command))
    assert (result.exit_code, "nothing uses seed. Put ${seed} into the command" in result.stderr) == (2, True)
    for script in ("import os; os.environ['seed']", "pf.hparams()['seed']"):
        assert run_cli("sweep", "run", "--dry-run", *write(script, command)).exit_code == 0


def test_what_is_wrong_with_a_sweep_is_told_before_anything_runs(
    run_cli: RunCli, write: Callable[..., list[str]], root: StorageRoot
) -> None:
    options = write()
    assert (
        "cannot read the sweep 'nowhere.yml'" in run_cli("sweep", "run", *options[:2], "--sweep", "nowhere.yml").stderr
    )
    result = run_cli("sweep", "run", *options[:2])
    assert (result.exit_code, "give --sweep FILE, or the template" in result.stderr) == (2, True)
    result = run_cli("sweep", "run", *write(mode="least"))
    assert (result.exit_code, "s.yml:1:" in result.stderr) == (2, True)
    shared = write(resources={"device": 0.5})
    result = run_cli("sweep", "run", "--local", "--num-devices", "2", "--devices-per-node", "1", *shared)
    assert (result.exit_code, "only trials of one device share it" in result.stderr) == (2, True)
    assert list_jobs(root) == []
