"""On a terminal of 80 columns tables stay readable, and whatever people copy out of them is in one piece."""

from __future__ import annotations

import io
import json
import os
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from support.sample_checkpoints import ID, write_sample_checkpoints
from support.sample_jobs import NEW_YEAR_UNIX_S, build_record
from support.terminal import COLUMNS, open_terminal, without_styles

from periflow_ray.cli.tables import build_fields, draw_fields, draw_panels, draw_table
from periflow_ray.cluster.records import ClusterRecord, write_cluster
from periflow_ray.credentials import CREDENTIALS_FILE_VARIABLE, create_credential
from periflow_ray.jobs import JobState, write_record, write_state
from periflow_ray.jobs.events import EventWriter
from periflow_ray.jobs.experiments import create_experiment
from periflow_ray.plan import build_plan, local_vm
from periflow_ray.spec import SweepSpec, load_template
from periflow_ray.store.datasets import upload_dataset
from periflow_ray.store.documents import write_document
from periflow_ray.store.keys import job_key
from periflow_ray.sweeps.documents import write_sweep
from periflow_ray.sweeps.journal import Journal

# The longest of the catalogue.
VM = "aws-16gb-t4-1g-g4dn-16xlarge-ap-northeast-1-spot"
NAME = "resnet-50-of-the-vision-team-with-mixup-and-cutmix"
SECOND_RUN = "second-run"

TRIAL_TEMPLATE = """
vm: local
num_devices: 1
job_setting: {type: custom, docker: {command: "python main.py $lr $momentum $width $dropout"}}
"""

# Runs each command line of its argument, with a line of its own before it.
RUN_ALL = """
import json, sys
from periflow_ray.cli.main import cli
for argv in json.loads(sys.argv[1]):
    print(f"$ {json.dumps(argv)}", flush=True)
    try:
        cli.main(argv, prog_name="periflow-ray")
    except SystemExit as end:
        assert not end.code, (argv, end.code)
    sys.stderr.flush()
print("$ end")
"""

# What of each command's output is copied by those who read it.
COPIED = {
    ("job", "list"): ["4", NAME, "running", VM],
    ("job", "list", "--job-name", SECOND_RUN): ["5", SECOND_RUN, "success", "local"],
    ("job", "view", "4"): ["4", NAME, "running", VM],
    ("job", "events", "4"): ["2026-01-01 00:00:00", "/a/path/" + "of-many-parts/" * 8 + "main.py"],
    ("job", "metrics", "list", "1"): ["loss", "accuracy"],
    ("job", "metrics", "show", "1", "--no-plot"): ["loss", "accuracy"],
    ("vm", "list", "--device", "T4"): [VM],
    ("vm", "list", "--region", "us-east-1"): ["aws-80gb-h100-8g-us-east-1-spot"],
    ("experiment", "list"): [NAME, "vision"],
    ("experiment", "view", NAME): [NAME, "4", VM],
    ("checkpoint", "list"): [ID, "1/step-00000010", "committed"],
    ("checkpoint", "list", "--all"): ["1/step-00000030", "partial"],
    ("checkpoint", "view", ID): [ID, "model.pt"],
    ("datastore", "list"): [NAME, "my-cifar-100", "1.5 kB"],
    ("datastore", "view", "my-cifar-100"): ["my-cifar-100", "cifar-100-python"],
    ("credential", "list"): ["team-s3", "s3"],
    ("cluster", "list"): [NAME[:30], "running", VM],
    ("sweep", "list"): [],
}


@pytest.fixture
def wide_root(sample_root, tmp_path, monkeypatch):
    """The sample root with names as long as they become."""
    monkeypatch.setenv(CREDENTIALS_FILE_VARIABLE, str(tmp_path / "credentials.json"))
    create_credential("team-s3", "s3", {"access_key_id": "an-id", "secret_access_key": "a-key", "region": "us-east-1"})
    write_sample_checkpoints(sample_root, tmp_path / "checkpoints")
    create_experiment(sample_root, NAME)
    record = build_record(4, name=NAME, experiment=NAME, vm=VM, accelerator="T4", dataset=NAME)
    write_record(sample_root, record)
    write_state(sample_root, 4, JobState("running", NEW_YEAR_UNIX_S, attempt=1))
    write_record(sample_root, build_record(5, name=SECOND_RUN))
    write_state(sample_root, 5, JobState("success", NEW_YEAR_UNIX_S, NEW_YEAR_UNIX_S + 3723, attempt=1))
    text = f"attempt 1 failed: cannot open '/a/path/{'of-many-parts/' * 8}main.py'; see what it says"
    EventWriter(sample_root, 4, "driver").write("note", text, 1, time_unix_s=NEW_YEAR_UNIX_S)
    upload_dataset(sample_root, NAME, tmp_path / "cifar-100-python", contents_only=True, metadata={})
    cluster = ClusterRecord(
        NAME[:30], "aws", "ap-northeast-1", [VM], 2, 10, "kim", "laptop", NEW_YEAR_UNIX_S, "running"
    )
    write_cluster(sample_root, cluster)
    return sample_root


def test_every_table_is_readable_on_80_columns_and_nothing_that_is_copied_folds(wide_root: object) -> None:
    argvs = [list(argv) for argv in COPIED]
    with open_terminal([sys.executable, "-c", RUN_ALL, json.dumps(argvs)], os.environ) as terminal:
        output = terminal.read_until()
    *parts, end = re.split(r"^\$ ", output, flags=re.M)[1:]
    assert end == "end\n", output
    for (argv, copied), part in zip(COPIED.items(), parts, strict=True):
        lines = part.splitlines()[1:]
        drawn = [line for line in lines if line.startswith(tuple("┏┡└│┃╭╰"))]
        assert [line for line in drawn if cell_len(line) > COLUMNS] == [], argv
        for value in copied:
            whole = re.compile(rf"(?<!\w){re.escape(value)}(?!\w)")
            assert [line for line in lines if whole.search(line)], f"{argv}: '{value}' is not whole in\n{part}"


def test_a_column_for_which_there_is_no_room_is_named(wide_root: object) -> None:
    with open_terminal(
        [sys.executable, "-m", "periflow_ray.cli.main", "vm", "list", "--region", "us-east-1"], os.environ
    ) as terminal:
        output = terminal.read_until()
    assert "80 columns have no room for: Cloud, Region, " in output
    assert "aws-80gb-h100-8g-us-east-1-spot" in output


def test_no_field_is_folded_that_has_no_blank() -> None:
    path = "/srv/users/somebody/.local/state/periflow-ray/local-cluster/supervisor.log"
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, markup=False, emoji=False, highlight=False)
    draw_fields(console, {"Without a job for": "0s", "Log": path, "Text": "of many words " * 20})
    draw_panels(console, {"Overview": build_fields({"Without a job for": "0s", "Log": path})})
    lines = without_styles(out.getvalue()).splitlines()
    assert len([line for line in lines if line.strip().endswith(path)]) == 2
    assert len([line for line in lines if "of many words" in line]) > 1


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=60)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT, TEXT, TEXT), min_size=1, max_size=4), st.integers(20, 120))
def test_whatever_the_names_a_table_keeps_each_in_one_piece(rows: list[tuple[str, ...]], width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, markup=False, emoji=False, highlight=False)
    draw_table(console, ("Number", "Name", "Status", "Other"), rows, dropped_first=("Other",))
    lines = without_styles(out.getvalue()).splitlines()
    for *kept, _ in rows:
        assert [cell for cell in kept if not any(cell in line for line in lines)] == []


def test_the_trials_of_a_sweep_of_four_parameters_are_one_table(sample_root):
    write_sweep_of_digits(sample_root)

    argv = [sys.executable, "-m", "periflow_ray.cli.main", "sweep", "view", "20"]
    with open_terminal(argv, os.environ) as terminal:
        heading, _, head, _, first, *_ = terminal.read_until().splitlines()

    assert heading == "Sweep 20: success. 12 of 12 trials have ended. Best: the highest accuracy."
    assert re.split(" *[┃│] *", head)[1:-1] == ["Trial", "lr", "momentum", "width", "dropout", "Best", "Step", "Status"]
    assert re.split(" *[┃│] *", first)[1:5] == ["12", "0.05574", "0.005624", "32"]


def write_sweep_of_digits(root):
    """A sweep as that of examples/sweep, whose last trial is the best; all others have failed with many lines."""
    parameters = {"lr": {"uniform": [0, 1]}, "momentum": {"uniform": [0, 1]}, "width": {"choice": [16, 32]}}
    parameters["dropout"] = {"uniform": [0, 1]}
    write_record(root, build_record(20, name="digits-sweep", experiment=None))
    write_state(root, 20, JobState("success", NEW_YEAR_UNIX_S, NEW_YEAR_UNIX_S + 30, attempt=1))
    plan = build_plan(load_template(TRIAL_TEMPLATE).spec, local_vm(num_gpus=0), storage_uri="/s", num_local_cpus=2)
    write_document(root, job_key(20, "plan.json"), plan)
    sweep = {"metric": "accuracy", "mode": "max", "num_trials": 12, "parameters": parameters}
    write_sweep(root, 20, SweepSpec.model_validate(sweep))
    journal = Journal(root, 20)
    for number in range(1, 13):
        values = {"lr": 0.00464477 * number, "momentum": 0.06748425 / number, "dropout": number / 7}
        journal.begin(number, 20 + number, {**values, "width": 16 if number == 1 else 32}, f"tune-{number}")
        if number == 12:
            journal.report(number, 600, 0.9427609443664551)
        why = None if number == 12 else "it ended with exit code 1.\nLast lines:\n  Traceback (most recent call last):"
        journal.end(number, "success" if number == 12 else "failed", why, 1)
    journal.flush()
