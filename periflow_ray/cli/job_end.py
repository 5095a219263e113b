"""``job stop`` and ``job delete``."""

from __future__ import annotations

import click

from periflow_ray.cli.options import job_argument, storage_option, yes_option
from periflow_ray.errors import PeriflowRayError
from periflow_ray.store.jobs import delete_job, read_job, read_record
from periflow_ray.store.root import StorageRoot


@click.command()
@job_argument
@storage_option
def stop(job_id: int, root: StorageRoot) -> None:
    """Stop a job and wait until it has stopped. Its log, metrics and checkpoints stay.

    \b
    Example:
      periflow-ray job stop 3
    """
    from periflow_ray.submit.jobs import check_state, stop_job

    read_record(root, job_id)
    state = check_state(root, job_id)
    if state.has_ended:
        click.echo(f"Job ({job_id}) has already ended: {state.status}.", err=True)
        return
    state = stop_job(root, job_id)
    if not state.has_ended:
        raise PeriflowRayError(
            f"job {job_id} is still {state.status}. See what it does: periflow-ray job log {job_id} -f"
        )
    click.echo(f"Job ({job_id}) ended: {state.status}.", err=True)


@click.command()
@job_argument
@yes_option
@storage_option
def delete(job_id: int, is_confirmed: bool, root: StorageRoot) -> None:
    """Delete an ended job with its log, metrics and checkpoints.

    \b
    Example:
      periflow-ray job delete 3
      periflow-ray job delete 3 --yes
    """
    record = read_job(root, job_id).record
    if not is_confirmed:
        named = f" '{record.name}'" if record.name else ""
        click.confirm(f"Delete job {job_id}{named} with its log, metrics and checkpoints?", abort=True, err=True)
    delete_job(root, job_id)
    click.echo(f"Job ({job_id}) is deleted.", err=True)
