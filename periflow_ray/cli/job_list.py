"""``job list``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from fnmatch import fnmatchcase

import click
from rich.console import Console

from periflow_ray.cli.choice import Choice
from periflow_ray.cli.complete import complete_experiment, complete_job_name, complete_sweep, complete_vm
from periflow_ray.cli.job_table import draw_jobs, job_document
from periflow_ray.cli.options import find_sweep, since_option, storage_option, until_option
from periflow_ray.cli.output import clear_screen, output_option, tell_empty, tell_left_out, write_output
from periflow_ray.errors import UsageError
from periflow_ray.jobs import JOB_STATUSES, Job, list_jobs, read_jobs
from periflow_ray.store.root import StorageRoot

_WATCH_INTERVAL_S = 2.0


@click.command("list")
@click.option(
    "-l", "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most this many jobs."
)
@click.option("-a", "--all", "shows_all", is_flag=True, help="All jobs: no limit.")
@since_option
@until_option
@click.option(
    "--job-name",
    metavar="NAME",
    shell_complete=complete_job_name,
    help="Jobs of this name; * and ? stand for any characters.",
)
@click.option(
    "--vm", metavar="NAME", shell_complete=complete_vm, help="Jobs on this VM type; * and ? stand for any characters."
)
@click.option("-e", "--experiment", shell_complete=complete_experiment, help="Jobs of this experiment.")
@click.option("--sweep", shell_complete=complete_sweep, help="The trials of this sweep, which are left out otherwise.")
@click.option("--status", "statuses", multiple=True, type=Choice(JOB_STATUSES), help="Jobs in this state; repeatable.")
@click.option("--watch", is_flag=True, help="Show them again every two seconds, until Ctrl-C.")
@storage_option
@output_option
def list_command(
    limit: int,
    shows_all: bool,
    since: float | None,
    until: float | None,
    job_name: str | None,
    vm: str | None,
    experiment: str | None,
    sweep: str | None,
    statuses: tuple[str, ...],
    watch: bool,
    root: StorageRoot,
    output: str,
) -> None:
    """List jobs, newest first.

    \b
    Example:
      periflow-ray job list --since 2d --status failed --status stopped
      periflow-ray job list --experiment vision --watch
      periflow-ray job list --all -o json
    """
    if watch and output != "table":
        raise UsageError("--watch is for people; it cannot be used with -o json or -o yaml.")
    sweep_id = None if sweep is None else find_sweep(root, sweep)

    def is_wanted(job: Job) -> bool:
        return (
            (since is None or job.record.created_unix_s >= since)
            and (until is None or job.record.created_unix_s <= until)
            and _matches(job.record.name or "", job_name)
            and _matches(job.record.vm, vm)
            and (experiment is None or job.record.experiment == experiment)
            and (not statuses or job.state.status in statuses)
        )

    while True:
        listed = _read_jobs(root, sweep_id)
        jobs = [job for job in listed if is_wanted(job)]
        _show(root, jobs if shows_all else jobs[:limit], len(jobs), len(listed), output)
        if not watch:
            return
        time.sleep(_WATCH_INTERVAL_S)
        clear_screen()


def _show(root: StorageRoot, shown: Sequence[Job], num_found: int, num_listed: int, output: str) -> None:
    def draw(console: Console) -> None:
        if shown:
            draw_jobs(console, shown)

    write_output(output, [job_document(job) for job in shown], draw)
    if not num_listed:
        tell_empty(root, "jobs", "periflow-ray submit --local -f pf-template.yml -d DIRECTORY")
    elif not num_found:
        click.echo("No job is as these options want it. All of them: periflow-ray job list --all", err=True)
    elif len(shown) < num_found:
        click.echo(f"{num_found - len(shown)} older jobs are not shown. All of them: --all", err=True)


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
