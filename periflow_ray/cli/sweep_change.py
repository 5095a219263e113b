"""``sweep retry`` and ``sweep delete``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from periflow_ray.cli.options import confirm, storage_option, sweep_argument, yes_option
from periflow_ray.errors import UsageError
from periflow_ray.jobs import JobState, delete_job, write_state
from periflow_ray.sweeps.documents import read_sweep
from periflow_ray.sweeps.journal import Journal, read_trials

if TYPE_CHECKING:
    from periflow_ray.store.root import StorageRoot


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
    failed = [trial.number for trial in read_trials(root, sweep_id).values() if trial.status == "failed"]
    if not failed:
        raise UsageError(f"no trial of sweep {sweep_id} has failed.")
    journal = Journal(root, sweep_id)
    for number in failed:
        journal.retry(number)
    text = f"{len(failed)} failed trials are to run again"
    write_state(root, sweep_id, dataclasses.replace(state, status="stopped", message=text))
    click.echo(f"Trials to run again: {', '.join(map(str, failed))}. Run them: periflow-ray sweep resume {sweep_id}")


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
    from periflow_ray.submit.jobs import settle_state

    read_sweep(root, sweep_id)
    job_ids = [job_id for trial in read_trials(root, sweep_id).values() for job_id in trial.job_ids]
    _require_ended(root, sweep_id)
    if not is_confirmed:
        confirm(f"Delete sweep {sweep_id} and its {len(job_ids)} trials with their checkpoints?")
    for job_id in job_ids:
        # One whose agent was lost with the cluster has not said that it ended.
        if not settle_state(root, job_id).has_ended:
            raise UsageError(f"job {job_id}, a trial of sweep {sweep_id}, seems to run.")
        delete_job(root, job_id)
    delete_job(root, sweep_id)
    click.echo(f"Deleted sweep {sweep_id} and {len(job_ids)} trials.")


def _require_ended(root: StorageRoot, sweep_id: int) -> JobState:
    from periflow_ray.submit.jobs import settle_state

    state = settle_state(root, sweep_id)
    if not state.has_ended:
        raise UsageError(f"sweep {sweep_id} is {state.status}. Stop it first: periflow-ray sweep stop {sweep_id}")
    return state
