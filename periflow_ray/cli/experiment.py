"""``experiment``: named groups of jobs."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from periflow_ray.cli.complete import complete_experiment
from periflow_ray.cli.format import format_time, iso_time
from periflow_ray.cli.job_table import draw_jobs, job_document
from periflow_ray.cli.lazy import LazyGroup
from periflow_ray.cli.options import confirm, storage_option, yes_option
from periflow_ray.cli.output import output_option, tell_empty, tell_left_out, write_output
from periflow_ray.cli.tables import build_fields, draw_panels, draw_table
from periflow_ray.jobs import list_jobs
from periflow_ray.jobs.experiments import (
    create_experiment,
    delete_experiment,
    list_experiments,
    read_experiment,
    rename_experiment,
)
from periflow_ray.store.root import StorageRoot

_COMMANDS = {
    "create": ("periflow_ray.cli.experiment:create", "Create an experiment."),
    "list": ("periflow_ray.cli.experiment:list_command", "List experiments."),
    "view": ("periflow_ray.cli.experiment:view", "Show an experiment and its jobs."),
    "edit": ("periflow_ray.cli.experiment:edit", "Rename an experiment."),
    "delete": ("periflow_ray.cli.experiment:delete", "Delete an experiment; its jobs stay."),
}


@click.group(cls=LazyGroup, lazy_commands=_COMMANDS)
def experiment() -> None:
    """Named groups of jobs; a template names one under "experiment".

    \b
    Example:
      periflow-ray experiment create -n computer-vision
      periflow-ray experiment view computer-vision
    """


@click.command()
@click.option("-n", "--name", required=True, help="Its name.")
@storage_option
def create(name: str, root: StorageRoot) -> None:
    """Create an experiment.

    \b
    Example:
      periflow-ray experiment create -n computer-vision
    """
    create_experiment(root, name)
    click.echo(f"Experiment '{name}' is created.", err=True)


@click.command("list")
@storage_option
@output_option
def list_command(root: StorageRoot, output: str) -> None:
    """List experiments with how many jobs each has.

    \b
    Example:
      periflow-ray experiment list
    """
    # A sweep is one job, whatever the number of its trials.
    names = [job.record.experiment for job in list_jobs(root, tell_left_out)]
    found = [(entry, names.count(entry.name)) for entry in list_experiments(root, tell_left_out)]
    documents = [
        {"name": entry.name, "num_jobs": num_jobs, "created": iso_time(entry.created_unix_s)}
        for entry, num_jobs in found
    ]

    def draw(console: Console) -> None:
        rows = [(entry.name, str(num_jobs), format_time(entry.created_unix_s)) for entry, num_jobs in found]
        if rows:
            draw_table(console, ("Name", "Jobs", "Created"), rows, dropped_first=("Created",))

    write_output(output, documents, draw)
    if not found:
        tell_empty(root, "experiments", "periflow-ray experiment create -n NAME")


@click.command()
@click.argument("name", shell_complete=complete_experiment)
@storage_option
@output_option
def view(name: str, root: StorageRoot, output: str) -> None:
    """Show an experiment and its jobs.

    \b
    Example:
      periflow-ray experiment view computer-vision
    """
    found = read_experiment(root, name)
    jobs = [job for job in list_jobs(root, tell_left_out) if job.record.experiment == name]
    document: dict[str, Any] = {
        "name": found.name,
        "created": iso_time(found.created_unix_s),
        "jobs": [job_document(job) for job in jobs],
    }

    def draw(console: Console) -> None:
        fields = {"Name": found.name, "Created": format_time(found.created_unix_s), "Jobs": str(len(jobs))}
        draw_panels(console, {"Overview": build_fields(fields)})
        if jobs:
            draw_jobs(console, jobs)

    write_output(output, document, draw)


@click.command()
@click.argument("name", shell_complete=complete_experiment)
@click.option("-n", "--name", "new_name", required=True, help="Its new name.")
@storage_option
def edit(name: str, new_name: str, root: StorageRoot) -> None:
    """Rename an experiment. Jobs keep the name they were submitted with.

    \b
    Example:
      periflow-ray experiment edit computer-vision -n vision
    """
    rename_experiment(root, name, new_name)
    click.echo(f"Experiment '{name}' is now '{new_name}'.", err=True)


@click.command()
@click.argument("name", shell_complete=complete_experiment)
@yes_option
@storage_option
def delete(name: str, is_confirmed: bool, root: StorageRoot) -> None:
    """Delete an experiment; its jobs stay.

    \b
    Example:
      periflow-ray experiment delete computer-vision
    """
    read_experiment(root, name)
    if not is_confirmed:
        confirm(f"Delete experiment '{name}'? Its jobs stay.")
    delete_experiment(root, name)
    click.echo(f"Experiment '{name}' is deleted.", err=True)
