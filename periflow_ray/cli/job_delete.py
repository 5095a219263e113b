"""``job delete``."""

from __future__ import annotations

import click

from periflow_ray.cli.options import confirm, only_job_argument, storage_option, yes_option
from periflow_ray.errors import UsageError
from periflow_ray.jobs import delete_job, read_job
from periflow_ray.store.root import StorageRoot
from periflow_ray.sweeps.documents import has_sweep


@click.command()
@only_job_argument
@yes_option
@storage_option
def delete(job_id: int, is_confirmed: bool, root: StorageRoot) -> None:
    """Delete an ended job with its log, metrics and checkpoints.

    \b
    Example:
      periflow-ray job delete 3
      periflow-ray job delete 3 --yes
    """
    from periflow_ray.submit.jobs import settle_state

    if has_sweep(root, job_id):
        raise UsageError(f"job {job_id} is a sweep. Delete it with its trials: periflow-ray sweep delete {job_id}")
    record = read_job(root, job_id).record
    settle_state(root, job_id)
    if not is_confirmed:
        named = f" '{record.name}'" if record.name else ""
        confirm(f"Delete job {job_id}{named} with its log, metrics and checkpoints?")
    delete_job(root, job_id)
    click.echo(f"Job ({job_id}) is deleted.", err=True)
