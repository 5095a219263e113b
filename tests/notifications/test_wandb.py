"""A job's run at Weights & Biases; a hand-written module stands in for the package."""

from __future__ import annotations

import dataclasses
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from periflow_ray.credentials import create_credential
from periflow_ray.jobs import JobRecord
from periflow_ray.jobs.metrics import Metric
from periflow_ray.runtime.monitor.sinks import sink_variables, with_hparams
from periflow_ray.runtime.monitor.sinks.stored import StoredMetrics
from periflow_ray.runtime.monitor.sinks.tensorboard import TensorBoardFiles
from periflow_ray.runtime.monitor.sinks.wandb import WandbRun, WandbSink, read_wandb_run
from periflow_ray.spec import PluginSpec

PLUGIN = PluginSpec.model_validate({"wandb": {"credential_id": "w"}})
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


def test_the_job_s_environment_continues_one_run_per_job(record: JobRecord, problems: list[str]) -> None:
    create_credential("w", "wandb", {"api_key": "hunter2"})
    run = read_wandb_run(PLUGIN, record, {}, problems.append)
    assert run is not None
    assert run.environment() == {
        "WANDB_API_KEY": "hunter2",
        "WANDB_PROJECT": "vision",
        "WANDB_NAME": "cifar-12",
        "WANDB_RUN_GROUP": run.run_id,
        "WANDB_RUN_ID": run.run_id,
        "WANDB_RESUME": "allow",
    }
    assert run.run_id.startswith("periflow-12-")
    assert read_wandb_run(PLUGIN, record, {}, problems.append) == run == pickle.loads(pickle.dumps(run))
    # Job 12 of another storage root is another run.
    other = read_wandb_run(PLUGIN, dataclasses.replace(record, created_unix_s=1.0), {}, problems.append)
    assert other is not None
    assert other.run_id != run.run_id
    assert "hunter2" not in repr(run)
    assert problems == []


def test_names_that_wandb_would_refuse_are_changed(record: JobRecord, problems: list[str]) -> None:
    create_credential("w", "wandb", {"api_key": "hunter2"})
    other = dataclasses.replace(record, name=None, experiment="vision/50%?")
    run = read_wandb_run(PLUGIN, other, {}, problems.append)
    assert run is not None
    assert (run.project, run.name) == ("vision-50--", "job-12")
    other = dataclasses.replace(record, name="x" * 200, experiment=None)
    run = read_wandb_run(PLUGIN, other, {}, problems.append)
    assert run is not None
    assert (run.project, len(run.name)) == ("periflow-ray", 128)


def test_what_the_user_sets_stays(record: JobRecord, problems: list[str]) -> None:
    create_credential("w", "wandb", {"api_key": "hunter2"})
    env = {"WANDB_PROJECT": "mine", "WANDB_ENTITY": "team", "OTHER": "1"}
    run = read_wandb_run(PLUGIN, record, env, problems.append)
    assert run is not None
    assert run.settings == {"WANDB_PROJECT": "mine", "WANDB_ENTITY": "team"}
    variables = sink_variables([run], given={*env, "WANDB_API_KEY"})
    assert sorted(variables.settings) == ["WANDB_NAME", "WANDB_RESUME", "WANDB_RUN_GROUP", "WANDB_RUN_ID"]
    assert variables.secrets == {}


def test_without_the_plugin_or_its_credential_there_is_no_run(record: JobRecord, problems: list[str]) -> None:
    assert read_wandb_run(None, record, {}, problems.append) is None
    assert problems == []
    assert read_wandb_run(PLUGIN, record, {}, problems.append) is None
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
        "config": {},
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


def test_a_trial_s_parameters_are_the_config_of_its_run(wandb: Any, problems: list[str]) -> None:
    stored, board, run = with_hparams((StoredMetrics(), TensorBoardFiles(), RUN), {"lr": 0.1}, "loss")
    assert (stored, board) == (StoredMetrics(), TensorBoardFiles({"lr": 0.1}, "loss"))
    assert isinstance(run, WandbRun)
    sink = WandbSink(run, problems.append)
    sink.record([metric(1, loss=0.5)])
    sink.close()
    assert wandb.calls[0][1]["config"] == {"lr": 0.1}


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
