"""``cluster down``: a cluster ends, and the provider's own listing says that nothing of it is left."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import click

from periflow_ray.cli.complete import complete_cluster, complete_vm
from periflow_ray.cli.options import confirm, storage_option, yes_option
from periflow_ray.cli.output import talk_console
from periflow_ray.errors import ClusterError, NotFoundError

if TYPE_CHECKING:
    from periflow_ray.store.root import StorageRoot


@click.command("down")
@click.argument("name", shell_complete=complete_cluster)
@click.option(
    "--vm",
    "vm_name",
    shell_complete=complete_vm,
    help="Where to look for a cluster that the storage root does not know: a VM type of it.",
)
@yes_option
@storage_option
def down(root: StorageRoot, name: str, vm_name: str | None, is_confirmed: bool) -> None:
    """End a cluster: its machines, disks, addresses, network, roles and keys.

    What is left is asked of the provider, until it says that nothing is. The exit code is 1 if something stays.

    \b
    Examples:
      periflow-ray cluster down aws-24gb-a10g-1g-us-east-1
      periflow-ray cluster down mine --vm aws-24gb-a10g-1g-us-east-1   # of another storage root, or a lost one
    """
    from periflow_ray.cluster.lifecycle import take_down
    from periflow_ray.cluster.providers import open_provider
    from periflow_ray.cluster.records import find_cluster, write_cluster
    from periflow_ray.cluster.secrets import find_secrets
    from periflow_ray.plan.catalogue import find_vm

    talk = talk_console()
    record = find_cluster(root, name)
    if record is not None:
        cloud, region = str(record.cloud), record.region
    elif vm_name is not None:
        vm = find_vm(vm_name)
        cloud, region = vm.cloud, vm.region
    else:
        raise NotFoundError(
            f"there is no cluster '{name}' in storage root '{root.uri}'. List them: periflow-ray cluster list. To look "
            "for one that is not in the list, say where: --vm with a VM type of that cloud and region"
        )
    talk.print(f"Looks for cluster '{name}' in {region} ...")
    provider = open_provider(cloud, region)
    found = provider.list_resources(name)
    if found and not is_confirmed:
        for resource in found:
            talk.print(f"  {resource}", soft_wrap=True)
        confirm(f"Remove all this? Jobs that run on cluster '{name}' are lost")
    if record is not None and record.status != "ended":
        write_cluster(root, dataclasses.replace(record, status="ending"))
    left = take_down(provider, name, lambda text: talk.print(text, soft_wrap=True))
    if left:
        words = "".join(f"\n  {resource}: {reason}" for resource, reason in left.items())
        raise ClusterError(f"of cluster '{name}' there is left in {region}, after all tries:{words}")
    if record is not None:
        ended = dataclasses.replace(record, status="ended", head_address=None, ended_unix_s=time.time())
        write_cluster(root, ended)
    find_secrets(root.uri, name).forget()
    if found:
        click.echo(
            f"Cluster '{name}' is down: {len(found)} resources removed, and {region} has nothing of it any more."
        )
    else:
        click.echo(f"There is nothing of cluster '{name}' in {region}.")
