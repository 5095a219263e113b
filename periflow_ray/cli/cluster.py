"""``cluster``: Ray clusters on AWS and Azure."""

from __future__ import annotations

import click

from periflow_ray.cli.lazy import LazyGroup

_COMMANDS = {
    "render": ("periflow_ray.cli.cluster_render:render", "Print a cluster's YAML for 'ray up'."),
}


@click.group(cls=LazyGroup, lazy_commands=_COMMANDS)
def cluster() -> None:
    """Ray clusters on AWS and Azure, by the names of their VM types.

    \b
    Example:
      periflow-ray cluster render --vm aws-24gb-a10g-1g-us-east-1-spot > cluster.yaml
    """
