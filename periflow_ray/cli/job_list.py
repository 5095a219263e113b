"""``job list``."""

from __future__ import annotations

from fnmatch import fnmatchcase

import click
from rich.console import Console

from periflow_ray.cli.job_table import draw_jobs, job_document
from periflow_ray.cli.options import since_option, storage_option, until_option
from periflow_ray.cli.output import output_option, tell_left_out, write_output
from periflow_ray.jobs import JOB_STATUSES, Job, list_jobs, read_jobs
from periflow_ray.store.root import StorageRoot


@click.command("list")
@click.option(
    "-l", "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most this many jobs."
)
@click.option("-a", "--all", "shows_all", is_flag=True, help="All jobs: no limit.")
@since_option
@until_option
@click.option("--job-name", metavar="NAME", help="Jobs of this name; * and ? stand for any characters.")
@click.option("--vm", metavar="NAME", help="Jobs on this VM type; * and ? stand for any characters.")
@click.option(
    "--sweep", "sweep_id", type=click.IntRange(min=1), help="The trials of this sweep, which are left out otherwise."
)
@click.option(
    "--status", "statuses", multiple=True, type=click.Choice(JOB_STATUSES), help="Jobs in this state; repeatable."
)
@storage_option
@output_option
def list_command(
    limit: int,
    shows_all: bool,
    since: float | None,
    until: float | None,
    job_name: str | None,
    vm: str | None,
    sweep_id: int | None,
    statuses: tuple[str, ...],
    root: StorageRoot,
    output: str,
) -> None:
    """List jobs, newest first.

    \b
    Example:
      periflow-ray job list --since 2d --status failed --status stopped
      periflow-ray job list --all -o json
    """
    jobs = [
        job
        for job in _read_jobs(root, sweep_id)
        if (since is None or job.record.created_unix_s >= since)
        and (until is None or job.record.created_unix_s <= until)
        and _matches(job.record.name or "", job_name)
        and _matches(job.record.vm, vm)
        and (not statuses or job.state.status in statuses)
    ]
    shown = jobs if shows_all else jobs[:limit]

    def draw(console: Console) -> None:
        draw_jobs(console, shown)

    write_output(output, [job_document(job) for job in shown], draw)
    if len(shown) < len(jobs):
        click.echo(
            f"{len(jobs) - len(shown)} older jobs are not shown. All of them: periflow-ray job list --all", err=True
        )


def _read_jobs(root: StorageRoot, sweep_id: int | None) -> list[Job]:
    """The jobs, or the trials of a sweep."""
    if sweep_id is None:
        return list_jobs(root, tell_left_out)
    from periflow_ray.sweeps.documents import read_sweep
    from periflow_ray.sweeps.journal import read_trials

    read_sweep(root, sweep_id)
    job_ids = [job_id for trial in read_trials(root, sweep_id).values() for job_id in trial.job_ids]
    return read_jobs(root, job_ids, tell_left_out)


def _matches(value: str, pattern: str | None) -> bool:
    # A name that holds brackets must still match itself.
    return pattern is None or value == pattern or fnmatchcase(value, pattern)
