"""The end of a trial: its line for people, and the last words of its job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from periflow_ray.jobs import JobProgress, JobState, write_progress, write_state
from periflow_ray.runtime.sweeps import trial_runner
from periflow_ray.runtime.sweeps.trial_job import Report, TrialTask
from periflow_ray.runtime.sweeps.trial_runner import TrialRunner
from periflow_ray.runtime.sweeps.tuning import describe_end
from periflow_ray.spec import SweepSpec
from periflow_ray.store.root import StorageRoot
from periflow_ray.sweeps.journal import Journal, read_trials

SPEC = SweepSpec.model_validate(
    {"metric": "loss", "mode": "min", "num_trials": 1, "parameters": {"lr": {"uniform": [0, 1]}}}
)


@pytest.fixture
def root(tmp_path: Path) -> StorageRoot:
    return StorageRoot(str(tmp_path / "storage"))


def test_a_trial_that_failed_with_a_traceback_is_told_in_one_line(root: StorageRoot) -> None:
    why = (
        "node 0, rank 0: it ended with exit code 1.\nHint: the Python module 'x' is missing.\n"
        "Last lines:\n  Traceback (most recent call last):\n  ModuleNotFoundError: No module named 'x'"
    )
    journal = Journal(root, 1)
    journal.begin(1, 2, {"lr": 0.5}, "tune-1")
    journal.end(1, "failed", why, 1)
    journal.flush()

    assert describe_end(read_trials(root, 1)[1], SPEC) == (
        "trial 1, job 2: failed (node 0, rank 0: it ended with exit code 1. Hint: the Python module 'x' is missing.), "
        "more: periflow-ray job log 2; no loss at step 0; lr 0.5"
    )


class JobWithoutProgress:
    """A job that has reported its last step, and whose progress is stored while somebody waits for its end."""

    store: Callable[[], None]
    has_ended_by_itself = False

    def __init__(self, task: TrialTask, job_id: int, *_: object) -> None:
        self.job_id = job_id

    def start(self) -> None:
        pass

    def next_outcome(self) -> Report:
        return Report(600, {"loss": 0.1})

    def wait_for_end(self, timeout_s: float = 60.0) -> bool:
        if timeout_s < 60:
            type(self).store()
            return False
        type(self).has_ended_by_itself = True
        return True


@pytest.mark.parametrize(("total", "comes_to_its_end"), [(600, True), (1000, False)])
def test_a_script_at_its_last_step_ends_by_itself_although_its_progress_is_stored_late(
    root: StorageRoot, monkeypatch: pytest.MonkeyPatch, total: int, comes_to_its_end: bool
) -> None:
    monkeypatch.setattr(trial_runner, "TrialJob", JobWithoutProgress)
    monkeypatch.setattr(JobWithoutProgress, "has_ended_by_itself", False)
    store = staticmethod(lambda: write_progress(root, 2, JobProgress(600, total, None, {})))
    monkeypatch.setattr(JobWithoutProgress, "store", store, raising=False)
    write_state(root, 2, JobState("running", 100.0))
    write_progress(root, 2, JobProgress(540, total, None, {}))
    runner = TrialRunner(TrialTask(root=root), "loss", "min")
    runner.begin(2)
    runner.next_result()

    runner.wait_for_last_step()

    assert JobWithoutProgress.has_ended_by_itself == comes_to_its_end
