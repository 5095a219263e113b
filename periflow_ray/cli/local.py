"""``local``: the embedded Ray cluster of this machine, looked at and ended."""

from __future__ import annotations

from typing import Any

import click

from periflow_ray.cli.format import format_duration
from periflow_ray.cli.lazy import LazyGroup
from periflow_ray.cli.options import confirm, yes_option
from periflow_ray.cli.output import output_option, talk_console, write_output
from periflow_ray.cli.tables import draw_fields
from periflow_ray.errors import ClusterError

_COMMANDS = {
    "status": ("periflow_ray.cli.local:status", "Show whether the embedded cluster runs, and what runs on it."),
    "stop": ("periflow_ray.cli.local:stop", "End the embedded cluster now."),
}


@click.group(cls=LazyGroup, lazy_commands=_COMMANDS)
def local() -> None:
    """The embedded Ray cluster of this machine, on which submit --local runs jobs.

    It starts with the first job, and ends by itself when no job has run for ten minutes (PERIFLOW_LOCAL_IDLE_S).

    \b
    Example:
      periflow-ray local status
      periflow-ray local stop
    """


@click.command()
@output_option
def status(output: str) -> None:
    """Show whether the embedded cluster runs, where it answers, and how many jobs run on it.

    \b
    Example:
      periflow-ray local status
    """
    from periflow_ray.submit.local_cluster import LocalClusterDir, find_local_cluster

    directory, jobs = LocalClusterDir(), find_local_cluster()
    document: dict[str, Any] = {"is_running": jobs is not None}
    fields = {"Status": "not running; submit --local starts it"}
    if jobs is not None:
        num_jobs = jobs.count_running_jobs()
        idle_s = 0.0 if num_jobs else directory.idle_s()
        document |= {"address": jobs.address, "num_running_jobs": num_jobs, "idle_s": round(idle_s, 1)}
        fields = {
            "Status": "running",
            "Address": jobs.address,
            "Running jobs": str(num_jobs),
            "Without a job for": format_duration(idle_s),
            "Log": str(directory.log_path),
        }
    write_output(output, document, lambda console: draw_fields(console, fields))


@click.command()
@yes_option
def stop(is_confirmed: bool) -> None:
    """End the embedded cluster now; jobs that run on it are stopped, each with a save of its own first.

    \b
    Example:
      periflow-ray local stop
      periflow-ray local stop --yes
    """
    from periflow_ray.submit.local_cluster import LocalClusterDir, find_local_cluster, stop_local_cluster

    jobs = find_local_cluster()
    try:
        num_jobs = 0 if jobs is None else jobs.count_running_jobs()
    except ClusterError:
        num_jobs = 0
    if num_jobs and not is_confirmed:
        number = "A job runs" if num_jobs == 1 else f"{num_jobs} jobs run"
        confirm(f"{number} on the embedded cluster. End it nevertheless?")
    if jobs is not None:
        talk_console().print("Ending the embedded Ray cluster ...")
    has_ended = stop_local_cluster(LocalClusterDir(), lambda text: talk_console().print(text, soft_wrap=True))
    click.echo("The embedded cluster has ended." if has_ended else "The embedded cluster does not run.", err=True)
