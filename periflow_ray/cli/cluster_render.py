"""``cluster render``: a cluster's YAML, for those who run ``ray up`` themselves."""

from __future__ import annotations

from pathlib import Path

import click

import periflow_ray.cluster
from periflow_ray.cluster.config.render import Mounts, render_yaml
from periflow_ray.cluster.config.spec import build_spec, suggest_name
from periflow_ray.plan.catalogue import find_vm


@click.command("render")
@click.option(
    "--vm", "vm_names", multiple=True, required=True, help="The workers' VM type; may be given several times."
)
@click.option("--name", help="The cluster's name; default the first VM type's.")
@click.option("--max-nodes", type=int, default=2, show_default=True, help="Workers at the same time.")
@click.option(
    "--idle-minutes", type=click.IntRange(min=1), default=10, show_default=True, help="An idle worker is ended then."
)
@click.option(
    "--disk-gib", type=click.IntRange(min=50), default=200, show_default=True, help="System disk of each worker."
)
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

    The file needs wheels of periflow-ray (scripts/cluster-wheels) and the cluster's token in ~/.ray/auth_token.

    \b
    Example:
      periflow-ray cluster render --vm aws-24gb-a10g-1g-us-east-1-spot --vm aws-24gb-a10g-1g-us-east-1 > cluster.yaml
      ray up cluster.yaml
    """
    vms = [find_vm(vm_name) for vm_name in vm_names]
    spec = build_spec(
        name or suggest_name(vms[0]),
        vms,
        max_num_nodes=max_nodes,
        idle_timeout_minutes=idle_minutes,
        disk_gib=disk_gib,
    )
    for vm in spec.vms:
        if vm.retired_on is not None:
            withdrawn = f"{vm.name} was withdrawn by its provider on {vm.retired_on}"
            click.echo(f"Note: {withdrawn}; the nearest today is {vm.successor}.", err=True)
    mounts = Mounts(node_dir=str(Path(periflow_ray.cluster.__file__).with_name("node")), wheels_dir=wheels_dir)
    types = ", ".join(vm.instance_type for vm in spec.vms)
    click.echo(render_yaml(spec, "cluster.yaml", f"{types} in {spec.region}.", mounts), nl=False)
