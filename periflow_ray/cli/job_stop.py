"""``job stop``."""

from __future__ import annotations

import click

from periflow_ray.cli.duration import duration_callback
from periflow_ray.cli.options import job_argument, storage_option
from periflow_ray.errors import UsageError
from periflow_ray.store.root import StorageRoot


@click.command()
@job_argument
@click.option(
    "--timeout",
    "save_timeout_s",
    metavar="DURATION",
    callback=duration_callback,
    help="How long the save may take: 30s, 5m.  [default: 60s]",
)
@click.option("--now", "is_now", is_flag=True, help="Do not save: what was done since the newest checkpoint is lost.")
@storage_option
def stop(job_id: int, save_timeout_s: float | None, is_now: bool, root: StorageRoot) -> None:
    """Save at the step that all ranks can agree on, stop the job, and wait until it has stopped.

    Its log, metrics and checkpoints stay, and it can be resumed. A script that never asks pf.is_emergency_save() is
    stopped without a save.

    \b
    Examples:
      periflow-ray job stop 3
      periflow-ray job stop 3 --now
    """
    from periflow_ray.cli.follow import describe_stop
    from periflow_ray.jobs.stop_times import SAVE_TIMEOUT_S
    from periflow_ray.submit.jobs import settle_state
    from periflow_ray.submit.stop import stop_job, stop_job_now

    if is_now and save_timeout_s is not None:
        raise UsageError("--now saves nothing; it cannot be used with --timeout.")
    state = settle_state(root, job_id)
    if state.has_ended:
        click.echo(f"Job ({job_id}) has already ended: {state.status}.", err=True)
        return
    if is_now:
        state = stop_job_now(root, job_id)
    else:
        state = stop_job(root, job_id, save_timeout_s=SAVE_TIMEOUT_S if save_timeout_s is None else save_timeout_s)
    click.echo(describe_stop(root, job_id, state), err=True)
