"""Which sinks a job has, and that a monitor elsewhere can open them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from periflow_ray.credentials import create_credential
from periflow_ray.jobs import JobRecord
from periflow_ray.plan import JobPlan
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.runtime.monitor.sinks import open_sinks, plan_sinks, sink_environment
from periflow_ray.store.root import StorageRoot

RECORD = JobRecord(12, "cifar", "vision", "local", "CPU", 2, 2, None, "ada", 1700000000.5)


@pytest.mark.parametrize(
    ("uri", "names"),
    [("{tmp_path}", ["StoredSink", "TensorBoardSink", "WandbSink"]), ("memory://bucket", ["StoredSink", "WandbSink"])],
)
def test_the_monitor_opens_what_the_driver_has_planned(
    make_plan: Callable[..., JobPlan], tmp_path: Path, uri: str, names: list[str]
) -> None:
    create_credential("w", "wandb", {"api_key": "hunter2"})
    problems: list[str] = []
    plan = make_plan({"wandb": {"credential_id": "w"}})
    planned = plan_sinks(plan, RECORD, problems.append)
    assert sorted(sink_environment(planned, plan))[:1] == ["WANDB_API_KEY"]
    rules = pickle.loads(pickle.dumps(JobRules(1, 0, Retention(None, None), sinks=planned)))
    assert rules.sinks == planned
    root = StorageRoot(uri.format(tmp_path=tmp_path))
    opened = open_sinks(rules.sinks, root, 12, problems.append)
    assert [type(sink).__name__ for sink in opened] == names
    assert problems == []


def test_a_job_without_plugins_has_its_metrics_stored_and_no_more_variables(
    make_plan: Callable[..., JobPlan], tmp_path: Path
) -> None:
    plan = make_plan(None)
    planned = plan_sinks(plan, RECORD, pytest.fail)
    assert planned == JobRules(1, 0, Retention(None, None)).sinks
    assert sink_environment(planned, plan) == {}


def test_a_sink_that_cannot_be_opened_is_told_and_the_others_are(tmp_path: Path) -> None:
    class Broken:
        def open(self, *arguments: object) -> None:
            raise RuntimeError("no such library")

        def environment(self, plan: JobPlan) -> dict[str, str]:
            return {}

    problems: list[str] = []
    planned = (Broken(), *JobRules(1, 0, Retention(None, None)).sinks)
    opened = open_sinks(planned, StorageRoot(str(tmp_path)), 12, problems.append)
    assert [type(sink).__name__ for sink in opened] == ["StoredSink", "TensorBoardSink"]
    assert problems == ["Broken gets no metrics: RuntimeError: no such library."]
