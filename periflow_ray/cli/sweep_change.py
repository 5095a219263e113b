"""``sweep retry`` and ``sweep delete``."""

from __future__ import annotations

import contextlib
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import click

from periflow_ray.cli.options import confirm, storage_option, sweep_argument, yes_option
from periflow_ray.errors import NotFoundError, UsageError
from periflow_ray.jobs import JobState, delete_job, erase_job, read_record, read_written_state, write_state
from periflow_ray.jobs.resumes import claim_resume
from periflow_ray.jobs.succession import driver_id_of
from periflow_ray.sweeps.documents import read_sweep
from periflow_ray.sweeps.journal import Journal, read_trials

if TYPE_CHECKING:
    from periflow_ray.store.root import StorageRoot

_NUM_WATCHED = 16


@click.command()
@sweep_argument
@click.option("--failed", "is_failed", is_flag=True, help="Run the trials that failed again.")
@storage_option
def retry(sweep_id: int, is_failed: bool, root: StorageRoot) -> None:
    """Let trials of a sweep that has ended run again, from their checkpoints; sweep resume then runs them.

    \b
    Examples:
      periflow-ray sweep retry 3 --failed
      periflow-ray sweep resume 3
    """
    read_sweep(root, sweep_id)
    if not is_failed:
        raise UsageError("which trials? Give --failed.")
    state = _require_ended(root, sweep_id)
    journal = Journal(root, sweep_id)
    failed = [trial for trial in journal.trials.values() if trial.status == "failed"]
    if not failed:
        raise UsageError(f"no trial of sweep {sweep_id} has failed.")
    for trial in failed:
        # As who resumes a job: from now on it has all its restarts again.
        job_id = trial.job_ids[-1]
        claim_resume(root, job_id, driver_id_of(read_record(root, job_id)), read_written_state(root, job_id).attempt)
        journal.retry(trial.number)
    journal.flush()
    text = f"{len(failed)} failed trials are to run again"
    write_state(root, sweep_id, dataclasses.replace(state, status="stopped", message=text))
    numbers = ", ".join(str(trial.number) for trial in failed)
    click.echo(f"Trials to run again: {numbers}. Run them: periflow-ray sweep resume {sweep_id}")


@click.command()
@sweep_argument
@yes_option
@storage_option
def delete(sweep_id: int, is_confirmed: bool, root: StorageRoot) -> None:
    """Delete a sweep that has ended, with all its trials, their logs and their checkpoints.

    \b
    Example:
      periflow-ray sweep delete 3 --yes
    """
    read_sweep(root, sweep_id)
    job_ids = [job_id for trial in read_trials(root, sweep_id).values() for job_id in trial.job_ids]
    _require_ended(root, sweep_id)
    running = _find_running(root, job_ids)
    if running:
        raise UsageError(
            f"trials of sweep {sweep_id} seem to run: jobs {', '.join(map(str, running))}. Stop them first: "
            f"periflow-ray job stop {running[0]}"
        )
    if not is_confirmed:
        confirm(f"Delete sweep {sweep_id} and its {len(job_ids)} trials with their checkpoints?")
    for job_id in job_ids:
        erase_job(root, job_id)
    delete_job(root, sweep_id)
    click.echo(f"Deleted sweep {sweep_id} and {len(job_ids)} trials.")


def _find_running(root: StorageRoot, job_ids: list[int]) -> list[int]:
    """Jobs whose agents live, perhaps on a machine that was cut off; what was lost has not said that it ended."""
    from periflow_ray.submit.jobs import settle_state

    def runs(job_id: int) -> bool:
        # One that never began, or is deleted already, does not.
        with contextlib.suppress(NotFoundError):
            return read_written_state(root, job_id).heartbeat_unix_s is not None and not (
                settle_state(root, job_id).has_ended
            )
        return False

    # Each is watched for a while.
    with ThreadPoolExecutor(_NUM_WATCHED) as watchers:
        return [job_id for job_id, is_running in zip(job_ids, watchers.map(runs, job_ids), strict=True) if is_running]


def _require_ended(root: StorageRoot, sweep_id: int) -> JobState:
    from periflow_ray.submit.jobs import settle_state

    state = settle_state(root, sweep_id)
    if not state.has_ended:
        raise UsageError(f"sweep {sweep_id} is {state.status}. Stop it first: periflow-ray sweep stop {sweep_id}")
    return state
