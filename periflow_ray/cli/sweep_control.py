"""``sweep stop`` and ``sweep resume``: a sweep is a job, and these are the commands of jobs."""

from __future__ import annotations

import click

from periflow_ray.cli import job_resume, job_stop

stop = click.Command(
    "stop",
    params=job_stop.stop.params,
    callback=job_stop.stop.callback,
    help="""Let the trials that run save and stop, begin no others, and wait until all have ended.

    \b
    Example:
      periflow-ray sweep stop 3
    """,
)

resume = click.Command(
    "resume",
    params=job_resume.resume.params,
    callback=job_resume.resume.callback,
    help="""Go on with a sweep that was stopped or has failed, here or on another cluster.

    Trials that have ended stay as they are, those that were stopped go on from their checkpoints, and as many new ones
    begin as are missing.

    \b
    Examples:
      periflow-ray sweep resume 3
      periflow-ray sweep resume 3 --address http://127.0.0.1:8265
    """,
)
