"""The group ``job``; each command is in a module of its own."""

from __future__ import annotations

import click

from periflow_ray.cli.lazy import LazyGroup

JOB_COMMANDS = {
    "run": ("periflow_ray.cli.submit:submit", "The same as periflow-ray submit."),
    "list": ("periflow_ray.cli.job_list:list_command", "List jobs, newest first."),
    "view": ("periflow_ray.cli.job_view:view", "Show one job: overview, attempts, checkpoints, last events."),
    "log": ("periflow_ray.cli.job_log:log", "Show, follow or export a job's log."),
    "events": ("periflow_ray.cli.job_events:events", "Show what happened to a job and when."),
    "stop": ("periflow_ray.cli.job_stop:stop", "Save, then stop a job."),
    "resume": ("periflow_ray.cli.job_resume:resume", "Go on with a job that was stopped or has failed."),
    "drill": ("periflow_ray.cli.job_drill:drill", "Rehearse on a running job what happens when a node dies."),
    "delete": ("periflow_ray.cli.job_delete:delete", "Delete an ended job with all it stored."),
    "metrics": ("periflow_ray.cli.job_metrics:metrics", "List and plot a job's metrics."),
    "tensorboard": ("periflow_ray.cli.job_tensorboard:tensorboard", "Show jobs in TensorBoard, by their names."),
    "template": ("periflow_ray.cli.template:template", "Write a pf-template.yml."),
    "schema": ("periflow_ray.cli.template:schema", "Print the JSON Schema of pf-template.yml."),
}


@click.group(cls=LazyGroup, lazy_commands=JOB_COMMANDS)
def job() -> None:
    """Run, list, view, stop, resume and delete jobs; their logs and metrics.

    JOB is a job's number, its name (of several the newest one has), or the word last: the newest job.

    \b
    Example:
      periflow-ray job run --local -f pf-template.yml -d ./cifar
      periflow-ray job log last --follow
    """
