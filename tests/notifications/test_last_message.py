"""The last message of a job, which the driver of either kind of job sends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.message_server import MessageServer

from periflow_ray.jobs import JobRecord, JobState, JobStatus, read_written_state, write_state
from periflow_ray.runtime import job_driver
from periflow_ray.runtime.job_driver import JobSetup, run_job
from periflow_ray.runtime.job_end import JobEnd
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.runtime.notifications import Notifier, make_notifier
from periflow_ray.spec import PluginSpec
from periflow_ray.store.root import StorageRoot


@pytest.fixture
def root(tmp_path: Path) -> StorageRoot:
    root = StorageRoot(str(tmp_path / "storage"))
    write_state(root, 12, JobState("waiting"))
    return root


def run_stand_in(
    root: StorageRoot, notifier: Notifier | None, monkeypatch: pytest.MonkeyPatch, status: JobStatus, text: str | None
) -> None:
    """Run job 12 without Ray: its second attempt ends so, or its driver fails while it is running."""

    class Driver:
        def __init__(self, *arguments: Any) -> None:
            self._state: StateKeeper = arguments[2]

        def run(self) -> JobEnd:
            self._state.enter("running", "attempt 2 runs", 2)
            match status:
                case "success" | "failed" | "stopped":
                    self._state.enter(status, text)
                    return JobEnd(status)
            raise RuntimeError("Ray does not answer")

    monkeypatch.setattr(job_driver, "_Driver", Driver)
    monkeypatch.setattr(job_driver, "remove_sandboxes", lambda *arguments: None)
    setup = JobSetup(1, 1, {}, JobRules(1, 0, Retention()), notifier=notifier)
    with StateKeeper(root, 12) as state:
        run_job(root, 12, state, setup, lambda monitor: pytest.fail("Ray is not needed"))


@pytest.mark.parametrize(
    ("status", "text", "told"),
    [
        ("success", None, "Job 12 (cifar): has finished.\nLook: periflow-ray job view 12"),
        (
            "failed",
            "rank 1: the function raised ValueError: boom",
            "Job 12 (cifar): has failed.\nrank 1: the function raised ValueError: boom\n"
            "Next: nothing starts by itself.\nLook: periflow-ray job view 12",
        ),
        (
            "stopped",
            "stopped: requested by the user",
            "Job 12 (cifar): was stopped.\nstopped: requested by the user\n"
            "Next: nothing starts by itself.\nLook: periflow-ray job view 12",
        ),
    ],
)
def test_the_end_of_a_job_is_told(
    server: MessageServer,
    record: JobRecord,
    root: StorageRoot,
    monkeypatch: pytest.MonkeyPatch,
    status: JobStatus,
    text: str | None,
    told: str,
) -> None:
    plugin = PluginSpec.model_validate({"webhook": {"url": f"{server.url}/hook"}})
    notifier = make_notifier(plugin, record, pytest.fail)
    run_stand_in(root, notifier, monkeypatch, status, text)
    [document] = server.documents
    assert (document["kind"], document["text"], document["attempt"]) == (status, told, 2)
    assert read_written_state(root, 12).status == status


def test_the_end_of_a_job_whose_driver_fails_is_told(
    server: MessageServer, record: JobRecord, root: StorageRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = PluginSpec.model_validate({"webhook": {"url": f"{server.url}/hook"}})
    notifier = make_notifier(plugin, record, pytest.fail)
    with pytest.raises(RuntimeError, match="Ray does not answer"):
        run_stand_in(root, notifier, monkeypatch, "running", None)
    [document] = server.documents
    assert (document["kind"], document["cause"]) == ("failed", "the driver failed: RuntimeError: Ray does not answer")
