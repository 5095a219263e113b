"""``cluster up``: from the names of VM types to a cluster that runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from periflow_ray.cli.cluster_options import read_spec, spec_options
from periflow_ray.cli.duration import duration_callback
from periflow_ray.cli.options import storage_option, yes_option
from periflow_ray.cli.output import talk_console
from periflow_ray.errors import UsageError

if TYPE_CHECKING:
    from periflow_ray.store.root import StorageRoot


@click.command("up")
@spec_options(needs_vm=False)
@click.option(
    "--autostop",
    "autostop_s",
    metavar="TIME",
    callback=duration_callback,
    help="End the whole cluster when no job has run for so long: 30m, 2h.  [default: never]",
)
@click.option(
    "--max-cost", type=click.FloatRange(min=0, min_open=True), metavar="USD", help="End the whole cluster at this sum."
)
@click.option(
    "--ssh-from",
    metavar="CIDR",
    help="Addresses that may use SSH, such as 203.0.113.7/32.  [default: $PERIFLOW_SSH_FROM, else this machine's]",
)
@click.option(
    "--wheels",
    "wheels_dir",
    type=click.Path(path_type=Path),
    help="Folder with the wheels for the nodes.  [default: $PERIFLOW_CLUSTER_WHEELS, else they are collected]",
)
@click.option(
    "--pip", "packages", multiple=True, metavar="PACKAGE", help="A package that nodes have, too; may be repeated."
)
@yes_option
@storage_option
def up(
    root: StorageRoot,
    vm_names: tuple[str, ...],
    name: str | None,
    max_nodes: int,
    idle_minutes: int,
    disk_gib: int,
    autostop_s: float | None,
    max_cost: float | None,
    ssh_from: str | None,
    wheels_dir: Path | None,
    packages: tuple[str, ...],
    is_confirmed: bool,
) -> None:
    """Make a cluster on AWS or Azure: a head, and workers that come when a job asks for them.

    It looks first (credentials, permissions, quota, image, zones), shows what it will cost and asks. Given again, it
    goes on where it was cut off, and leaves a cluster that runs as it is.

    \b
    Examples:
      periflow-ray cluster up --vm aws-24gb-a10g-1g-us-east-1-spot --autostop 30m
      periflow-ray cluster up --vm azure-80gb-a100-4g-eastus-spot --vm azure-80gb-a100-4g-eastus --max-nodes 4
    """
    from periflow_ray.cli.cluster_making import choose_options, make_cluster
    from periflow_ray.cluster.records import find_cluster

    if not vm_names:
        known = find_cluster(root, name) if name is not None else None
        if known is None:
            raise UsageError("which VM type? Give --vm NAME. List them: periflow-ray vm list")
        vm_names = tuple(known.vm_names)
    spec = read_spec(vm_names, name, max_nodes, idle_minutes, disk_gib)
    options = choose_options(root, spec, ssh_from, wheels_dir, packages, autostop_s=autostop_s, max_cost_usd=max_cost)
    make_cluster(root, spec, options, is_confirmed=is_confirmed)
    click.echo(f"Cluster '{spec.name}' is up.")
    talk_console().print(
        f"Next: periflow-ray submit --address {spec.name} -f pf-template.yml -d .    End it: periflow-ray cluster "
        f"down {spec.name}",
        soft_wrap=True,
    )
