"""Which sinks a job has, and that a monitor elsewhere can open them."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from periflow_ray.credentials import create_credential
from periflow_ray.jobs import JobRecord
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.runtime.monitor.sinks import SinkVariables, open_sinks, plan_sinks, sink_variables
from periflow_ray.spec import PluginSpec
from periflow_ray.store.root import StorageRoot


@pytest.mark.parametrize(
    ("uri", "names"),
    [("{tmp_path}", ["StoredSink", "TensorBoardSink", "WandbSink"]), ("memory://bucket", ["StoredSink", "WandbSink"])],
)
def test_the_monitor_opens_what_the_driver_has_planned(
    record: JobRecord, tmp_path: Path, uri: str, names: list[str]
) -> None:
    create_credential("w", "wandb", {"api_key": "hunter2"})
    problems: list[str] = []
    plugin = PluginSpec.model_validate({"wandb": {"credential_id": "w"}})
    planned = plan_sinks(plugin, record, {}, problems.append)
    rules = pickle.loads(pickle.dumps(JobRules(1, 0, Retention(None, None), sinks=planned)))
    assert rules.sinks == planned
    root = StorageRoot(uri.format(tmp_path=tmp_path))
    opened = open_sinks(rules.sinks, root, 12, problems.append)
    assert [type(sink).__name__ for sink in opened] == names
    assert problems == []


def test_a_job_without_plugins_has_its_metrics_stored_and_no_more_variables(record: JobRecord) -> None:
    planned = plan_sinks(None, record, {}, pytest.fail)
    assert planned == JobRules(1, 0, Retention(None, None)).sinks
    assert sink_variables(planned, given=()) == SinkVariables({}, {})


def test_of_the_variables_of_a_sink_only_the_key_is_hidden_in_the_job_s_log(record: JobRecord) -> None:
    """The others are words such as the project's name, which a script may print for reasons of its own."""
    create_credential("w", "wandb", {"api_key": "hunter2"})
    plugin = PluginSpec.model_validate({"wandb": {"credential_id": "w"}})
    variables = sink_variables(plan_sinks(plugin, record, {}, pytest.fail), given=())
    assert variables.secrets == {"WANDB_API_KEY": "hunter2"}
    assert (variables.settings["WANDB_PROJECT"], variables.settings["WANDB_RESUME"]) == ("vision", "allow")


def test_a_sink_that_cannot_be_opened_is_told_and_the_others_are(tmp_path: Path) -> None:
    class Broken:
        def open(self, *arguments: object) -> None:
            raise RuntimeError("no such library")

        def environment(self) -> dict[str, str]:
            return {}

    problems: list[str] = []
    planned = (Broken(), *JobRules(1, 0, Retention(None, None)).sinks)
    opened = open_sinks(planned, StorageRoot(str(tmp_path)), 12, problems.append)
    assert [type(sink).__name__ for sink in opened] == ["StoredSink", "TensorBoardSink"]
    assert problems == ["Broken gets no metrics: RuntimeError: no such library."]
