"""``cluster render``: a cluster's YAML, for those who run ``ray up`` themselves."""

from __future__ import annotations

from pathlib import Path

import click

import periflow_ray.cluster
from periflow_ray.cli.cluster_options import read_spec, spec_options
from periflow_ray.cluster.config.render import Mounts, render_yaml


@click.command("render")
@spec_options(needs_vm=True)
@click.option(
    "--wheels",
    "wheels_dir",
    default="cluster_configs/wheels",
    show_default=True,
    help="Folder with the wheels for the nodes.",
)
def render(
    vm_names: tuple[str, ...], name: str | None, max_nodes: int, idle_minutes: int, disk_gib: int, wheels_dir: str
) -> None:
    """Print a cluster's YAML for 'ray up'.

    The file needs wheels of periflow-ray ('cluster wheels') and the cluster's token in ~/.ray/auth_token.

    \b
    Example:
      periflow-ray cluster render --vm aws-24gb-a10g-1g-us-east-1-spot --vm aws-24gb-a10g-1g-us-east-1 > cluster.yaml
      ray up cluster.yaml
    """
    spec = read_spec(vm_names, name, max_nodes, idle_minutes, disk_gib)
    for vm in spec.vms:
        if vm.retired_on is not None:
            withdrawn = f"{vm.name} was withdrawn by its provider on {vm.retired_on}"
            click.echo(f"Note: {withdrawn}; the nearest today is {vm.successor}.", err=True)
    mounts = Mounts(node_dir=str(Path(periflow_ray.cluster.__file__).with_name("node")), wheels_dir=wheels_dir)
    types = ", ".join(vm.instance_type for vm in spec.vms)
    click.echo(render_yaml(spec, "cluster.yaml", f"{types} in {spec.region}.", mounts), nl=False)
