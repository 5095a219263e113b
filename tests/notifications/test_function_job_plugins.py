"""``TorchTrainer(..., plugin=...)``, up to where Ray would begin."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.message_server import MessageServer

import periflow_ray
from periflow_ray import torch_trainer
from periflow_ray.credentials import create_credential, credentials_path
from periflow_ray.errors import StorageError, UsageError
from periflow_ray.jobs import list_jobs, read_record
from periflow_ray.runtime import job_driver
from periflow_ray.runtime.function_jobs.rank import FunctionTask
from periflow_ray.runtime.job_driver import JobSetup
from periflow_ray.runtime.job_end import JobEnd
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.runtime.monitor.contract import AttemptNews
from periflow_ray.runtime.monitor.sinks import DEFAULT_SINKS
from periflow_ray.runtime.monitor.sinks.wandb import WandbRun
from periflow_ray.store.root import StorageRoot


class DriverStandIn:
    """Runs a job that Ray has nothing to do with, and remembers what it was given."""

    setup: JobSetup
    task: FunctionTask

    def __init__(
        self,
        root: StorageRoot,
        job_id: int,
        state: StateKeeper,
        setup: JobSetup,
        make_trainer: Callable[[Any], Any],
        stop: object,
    ) -> None:
        self._state = state
        DriverStandIn.setup = setup
        DriverStandIn.task = make_trainer("monitor").train_loop_config["task"]

    def run(self) -> JobEnd:
        self.setup.on_attempt(AttemptNews(1, num_members=3, num_nodes=2))
        self._state.enter("failed", "rank 0: the function raised ValueError: boom")
        return JobEnd("failed", error=ValueError("boom"))


@pytest.fixture
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_trainer, "set_train_environment", lambda is_elastic: None)
    monkeypatch.setattr(torch_trainer, "ensure_ray", lambda: None)
    monkeypatch.setattr(torch_trainer.ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(job_driver, "_Driver", DriverStandIn)
    monkeypatch.setattr(job_driver, "remove_sandboxes", lambda *arguments: None)


@pytest.mark.usefixtures("_without_ray")
def test_a_function_job_tells_its_end_and_sends_its_metrics_as_a_template_says(
    server: MessageServer, tmp_path: Path
) -> None:
    create_credential("our-hook", "webhook", {"url": f"{server.url}/hook", "authorization": "Bearer hunter3"})
    create_credential("our-wandb", "wandb", {"api_key": "hunter2"})
    trainer = periflow_ray.TorchTrainer(
        print,
        name="cifar",
        experiment="vision",
        storage=str(tmp_path / "storage"),
        plugin={"webhook": {"credential_id": "our-hook"}, "wandb": {"credential_id": "our-wandb"}},
        env_var={"WANDB_ENTITY": "our-team", "WANDB_NAME": "mine"},
    )
    with pytest.raises(ValueError, match="boom"):
        trainer.fit()
    [posted] = server.posted
    assert (posted.path, posted.authorization) == ("/hook", "Bearer hunter3")
    assert posted.document["text"] == (
        "Job 1 (cifar): has failed.\nrank 0: the function raised ValueError: boom\n"
        "Next: nothing starts by itself.\nLook: periflow-ray job view 1"
    )
    *sinks, run = DriverStandIn.setup.rules.sinks
    assert tuple(sinks) == DEFAULT_SINKS
    assert isinstance(run, WandbRun)
    assert (run.project, run.name, run.settings["WANDB_ENTITY"]) == ("vision", "cifar-1", "our-team")
    # Ranks are elsewhere: it has to travel.
    task = pickle.loads(pickle.dumps(DriverStandIn.task))
    assert task.environment == {
        "WANDB_ENTITY": "our-team",
        "WANDB_NAME": "mine",
        "WANDB_PROJECT": "vision",
        "WANDB_RUN_GROUP": run.run_id,
        "WANDB_RUN_ID": run.run_id,
        "WANDB_RESUME": "allow",
    }
    assert task.secrets == {"WANDB_API_KEY": "hunter2"}
    # Ray's dashboard shows it.
    assert "hunter2" not in repr(task)


@pytest.mark.usefixtures("_without_ray")
def test_without_plugins_nobody_hears_of_a_function_job(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boom"):
        periflow_ray.TorchTrainer(print, storage=str(tmp_path / "storage")).fit()
    assert DriverStandIn.setup.notifier is None
    assert DriverStandIn.setup.rules.sinks == DEFAULT_SINKS
    assert (DriverStandIn.task.environment, DriverStandIn.task.secrets) == ({}, {})


@pytest.mark.usefixtures("_without_ray")
def test_the_record_has_the_nodes_on_which_ray_has_placed_the_ranks(tmp_path: Path) -> None:
    trainer = periflow_ray.TorchTrainer(print, num_devices=3, storage=str(tmp_path / "storage"))
    with pytest.raises(ValueError, match="boom"):
        trainer.fit()
    assert read_record(StorageRoot(str(tmp_path / "storage")), 1).num_nodes == 2


def test_credentials_that_cannot_be_used_are_told_before_there_is_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_trainer, "set_train_environment", lambda is_elastic: None)
    monkeypatch.setattr(torch_trainer, "ensure_ray", lambda: pytest.fail("a cluster starts"))
    create_credential("chat", "wandb", {"api_key": "hunter2"})
    root = StorageRoot(str(tmp_path / "storage"))
    trainer = periflow_ray.TorchTrainer(
        print,
        storage=root.uri,
        plugin={"slack": {"channel": "c", "credential_id": "chat"}, "webhook": {"credential_id": "hook"}},
    )
    with pytest.raises(UsageError) as caught:
        trainer.fit()
    assert str(caught.value) == (
        "plugin.slack.credential_id names 'chat', and that credential is of type wandb, not slack.\n"
        "plugin.webhook.credential_id names 'hook', and there is no such credential on this machine. "
        "Create it: periflow-ray credential create hook --type webhook"
    )
    credentials_path().chmod(0o644)
    with pytest.raises(StorageError, match="may be read by others"):
        trainer.fit()
    assert list_jobs(root) == []


def test_a_plugin_that_a_template_may_not_have_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match=r"^plugin\.slack\.channel is missing; it is required: "):
        periflow_ray.TorchTrainer(print, plugin={"slack": {"credential_id": "chat"}})
