"""``cluster``: Ray clusters on AWS and Azure."""

from __future__ import annotations

import click

from periflow_ray.cli.lazy import LazyGroup

_COMMANDS = {
    "up": ("periflow_ray.cli.cluster_up:up", "Make a cluster on AWS or Azure."),
    "down": ("periflow_ray.cli.cluster_down:down", "End a cluster, and see that nothing of it is left."),
    "list": ("periflow_ray.cli.cluster_list:list_command", "List clusters."),
    "status": ("periflow_ray.cli.cluster_list:status", "Show a cluster: machines, waits, cost."),
    "doctor": ("periflow_ray.cli.cluster_doctor:doctor", "Look for what may be wrong with a cluster."),
    "ssh": ("periflow_ray.cli.cluster_reach:ssh", "Open a shell on a cluster's head."),
    "tunnel": ("periflow_ray.cli.cluster_reach:tunnel", "Keep a cluster's dashboard at a port of this machine."),
    "logs": ("periflow_ray.cli.cluster_reach:logs", "Show how a cluster's nodes were made and set up."),
    "wheels": ("periflow_ray.cli.cluster_wheels:wheels", "Collect what nodes of 'ray up' are set up with."),
    "render": ("periflow_ray.cli.cluster_render:render", "Print a cluster's YAML for 'ray up'."),
}


@click.group(cls=LazyGroup, lazy_commands=_COMMANDS)
def cluster() -> None:
    """Ray clusters on AWS and Azure, by the names of their VM types.

    \b
    Example:
      periflow-ray cluster render --vm aws-24gb-a10g-1g-us-east-1-spot > cluster.yaml
    """
