"""``periflow-ray sweep``: the group of commands about hyperparameter sweeps."""

from __future__ import annotations

import click

from periflow_ray.cli.lazy import LazyGroup

_COMMANDS = {
    "run": ("periflow_ray.cli.sweep_run:run", "Search for the best hyperparameters of a template's job."),
    "list": ("periflow_ray.cli.sweep_view:list_command", "List sweeps, newest first."),
    "view": ("periflow_ray.cli.sweep_view:view", "The trials of a sweep, the best first."),
    "best": ("periflow_ray.cli.sweep_view:best", "The best trial: its parameters, its job, its checkpoint."),
    "export": ("periflow_ray.cli.sweep_export:export", "Write the trials to a CSV, Parquet or JSON file."),
    "plot": ("periflow_ray.cli.sweep_plot:plot", "Draw a sweep into an HTML page or a PNG."),
    "stop": ("periflow_ray.cli.sweep_control:stop", "Let the trials save, and stop."),
    "resume": ("periflow_ray.cli.sweep_control:resume", "Go on with a sweep that was stopped or has failed."),
    "retry": ("periflow_ray.cli.sweep_change:retry", "Let failed trials run again."),
    "delete": ("periflow_ray.cli.sweep_change:delete", "Delete a sweep with all its trials."),
}


@click.group(cls=LazyGroup, lazy_commands=_COMMANDS)
def sweep() -> None:
    """Search for the best hyperparameters: many trials of one template, each of them a job.

    \b
    Examples:
      periflow-ray sweep run --local -f pf-template.yml --sweep sweep.yml -d ./digits
      periflow-ray sweep view 3
    """
