"""A job's run at Weights & Biases; a hand-written module stands in for the package."""

from __future__ import annotations

import dataclasses
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from periflow_ray.credentials import create_credential
from periflow_ray.jobs import JobRecord
from periflow_ray.jobs.metrics import Metric
from periflow_ray.plan import JobPlan
from periflow_ray.runtime.monitor.sinks.wandb import WandbRun, WandbSink, read_wandb_run, wandb_environment

PLUGIN = {"wandb": {"credential_id": "w"}}
RECORD = JobRecord(12, "cifar", "vision", "local", "CPU", 2, 2, None, "ada", 1700000000.5)
RUN = WandbRun("periflow-12-ab", "cifar-12", "vision", "periflow-12-ab", "hunter2")

# The part of wandb's documented interface that is in use; what was called is in ``calls``.
STAND_IN = """
from pathlib import Path

calls = []
fails_at = None


def init(**options):
    options["dir_exists"] = Path(options["dir"]).is_dir()
    calls.append(("init", options))
    if fails_at == "init":
        raise RuntimeError(f"wrong key {options['settings']['api_key']}")
    return Run()


class Run:
    def define_metric(self, name, step_metric=None):
        calls.append(("define_metric", name, step_metric))

    def log(self, data):
        calls.append(("log", data))
        if fails_at == "log":
            raise SystemExit(1)

    def finish(self):
        calls.append(("finish",))
"""


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in, as ``import wandb`` finds it."""
    (tmp_path / "wandb.py").write_text(STAND_IN)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    import wandb

    yield wandb
    del sys.modules["wandb"]


@pytest.fixture
def problems() -> list[str]:
    """What was told to the job's events."""
    return []


def metric(step: int, rank: int = 0, **values: Any) -> Metric:
    return Metric(step, rank, rank, 0.0, values)


def test_the_command_s_environment_continues_one_run_per_job(
    make_plan: Callable[..., JobPlan], problems: list[str]
) -> None:
    create_credential("w", "wandb", {"api_key": "hunter2"})
    plan = make_plan(PLUGIN, name="cifar", experiment="vision")
    run = read_wandb_run(plan, RECORD, problems.append)
    assert run is not None
    assert wandb_environment(plan, run) == {
        "WANDB_API_KEY": "hunter2",
        "WANDB_PROJECT": "vision",
        "WANDB_NAME": "cifar-12",
        "WANDB_RUN_GROUP": run.run_id,
        "WANDB_RUN_ID": run.run_id,
        "WANDB_RESUME": "allow",
    }
    assert run.run_id.startswith("periflow-12-")
    assert read_wandb_run(plan, RECORD, problems.append) == run == pickle.loads(pickle.dumps(run))
    # Job 12 of another storage root is another run.
    other = read_wandb_run(plan, dataclasses.replace(RECORD, created_unix_s=1.0), problems.append)
    assert other is not None
    assert other.run_id != run.run_id
    assert "hunter2" not in repr(run)
    assert problems == []


def test_a_job_whose_record_is_damaged_does_without_its_run(
    make_plan: Callable[..., JobPlan], problems: list[str]
) -> None:
    create_credential("w", "wandb", {"api_key": "hunter2"})
    assert read_wandb_run(make_plan(PLUGIN), None, problems.append) is None
    assert problems == ["plugin.wandb is not used: the job's record, which its run's ID is made from, is damaged."]
    assert read_wandb_run(make_plan({}), None, problems.append) is None
    assert len(problems) == 1


def test_names_that_wandb_would_refuse_are_changed(make_plan: Callable[..., JobPlan], problems: list[str]) -> None:
    create_credential("w", "wandb", {"api_key": "hunter2"})
    run = read_wandb_run(make_plan(PLUGIN, experiment="vision/50%?"), RECORD, problems.append)
    assert run is not None
    assert (run.project, run.name) == ("vision-50--", "job-12")
    run = read_wandb_run(make_plan(PLUGIN, name="x" * 200), RECORD, problems.append)
    assert run is not None
    assert (run.project, len(run.name)) == ("periflow-ray", 128)


def test_what_the_template_sets_stays(make_plan: Callable[..., JobPlan], problems: list[str]) -> None:
    create_credential("w", "wandb", {"api_key": "hunter2"})
    docker = {"command": "true", "env_var": {"WANDB_PROJECT": "mine", "WANDB_ENTITY": "team", "OTHER": "1"}}
    plan = make_plan(PLUGIN, job_setting={"type": "custom", "docker": docker})
    plan = plan.model_copy(update={"secret_names": ("WANDB_API_KEY",)})
    run = read_wandb_run(plan, RECORD, problems.append)
    assert run is not None
    assert run.settings == {"WANDB_PROJECT": "mine", "WANDB_ENTITY": "team"}
    assert sorted(wandb_environment(plan, run)) == ["WANDB_NAME", "WANDB_RESUME", "WANDB_RUN_GROUP", "WANDB_RUN_ID"]


def test_without_the_plugin_or_its_credential_there_is_no_run(
    make_plan: Callable[..., JobPlan], problems: list[str]
) -> None:
    assert read_wandb_run(make_plan(None), RECORD, problems.append) is None
    assert problems == []
    assert read_wandb_run(make_plan(PLUGIN), RECORD, problems.append) is None
    [problem] = problems
    assert problem.startswith("plugin.wandb is not used: credential 'w' does not exist in ")


def test_rank_0_s_numbers_are_logged_under_their_steps(wandb: Any, problems: list[str]) -> None:
    sink = WandbSink(RUN, problems.append)
    sink.record([metric(1, loss=0.5, note="text"), metric(1, rank=1, loss=9.0), metric(2, note="text")])
    # After a restart, step 1 comes once more.
    sink.record([metric(1, loss=0.4)])
    sink.close()
    assert problems == []
    (_, options), *others = wandb.calls
    assert not Path(options.pop("dir")).exists()
    assert options == {
        "entity": None,
        "project": "vision",
        "group": "periflow-12-ab",
        "job_type": "pf.metric",
        "name": "cifar-12 (pf.metric)",
        "id": "periflow-12-ab-metrics",
        "resume": "allow",
        "settings": {"api_key": "hunter2", "console": "off", "silent": True},
        "dir_exists": True,
    }
    assert others == [
        ("define_metric", "step", None),
        ("define_metric", "*", "step"),
        ("log", {"loss": 0.5, "step": 1}),
        ("log", {"loss": 0.4, "step": 1}),
        ("finish",),
    ]


def test_the_template_s_own_variables_decide_where_the_metrics_go(wandb: Any, problems: list[str]) -> None:
    settings = {"WANDB_ENTITY": "team", "WANDB_PROJECT": "mine", "WANDB_BASE_URL": "https://wandb.example.com"}
    sink = WandbSink(dataclasses.replace(RUN, settings=settings), problems.append)
    sink.record([metric(1, loss=0.5)])
    sink.close()
    options = wandb.calls[0][1]
    assert (options["entity"], options["project"]) == ("team", "mine")
    assert options["settings"]["base_url"] == "https://wandb.example.com"


def test_a_job_without_metrics_starts_no_run(wandb: Any, problems: list[str]) -> None:
    sink = WandbSink(RUN, problems.append)
    sink.record([metric(1, rank=1, loss=0.5), metric(1, note="text")])
    sink.close()
    assert (wandb.calls, problems) == ([], [])


def test_a_missing_package_is_told_once(monkeypatch: pytest.MonkeyPatch, problems: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    sink = WandbSink(RUN, problems.append)
    sink.record([metric(step, loss=0.5) for step in range(5)])
    sink.close()
    assert problems == [
        "not everything reaches Weights & Biases: the package wandb is not installed where the job's monitor runs; "
        "pip install wandb there. The job goes on without it."
    ]


@pytest.mark.parametrize(("place", "error"), [("init", "RuntimeError"), ("log", "SystemExit")])
def test_an_error_of_wandb_is_told_once_without_the_key(
    wandb: Any, problems: list[str], place: str, error: str
) -> None:
    wandb.fails_at = place
    sink = WandbSink(RUN, problems.append)
    sink.record([metric(step, loss=0.5) for step in range(5)])
    sink.close()
    assert problems == [f"not everything reaches Weights & Biases: wandb failed ({error}). The job goes on without it."]
    assert [call[0] for call in wandb.calls].count(place) == 1
