"""``cluster up``: from the names of VM types to a cluster that runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from periflow_ray.cli.duration import duration_callback
from periflow_ray.cli.options import storage_option, yes_option
from periflow_ray.cli.output import talk_console
from periflow_ray.errors import ClusterError, UsageError
from periflow_ray.jobs.user import user_name

if TYPE_CHECKING:
    from rich.console import Console

    from periflow_ray.cluster.config.spec import ClusterSpec
    from periflow_ray.cluster.providers.provider import Finding
    from periflow_ray.store.root import StorageRoot

_SIGNS = {"good": "ok", "warning": "warning", "bad": "NO"}


@click.command("up")
@click.option(
    "--vm", "vm_names", multiple=True, metavar="NAME", help="The workers' VM type; may be given several times."
)
@click.option("--name", help="The cluster's name.  [default: the first VM type's]")
@click.option("--max-nodes", type=int, default=2, show_default=True, help="Workers at the same time.")
@click.option(
    "--idle-minutes", type=click.IntRange(min=1), default=10, show_default=True, help="An idle worker is ended then."
)
@click.option(
    "--disk-gib", type=click.IntRange(min=50), default=200, show_default=True, help="System disk of each worker."
)
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
    help="Addresses that may use SSH, such as 203.0.113.7/32.  [default: this machine's, as the cloud sees it]",
)
@click.option("--wheels", "wheels_dir", type=click.Path(path_type=Path), help="Folder with the wheels for the nodes.")
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
    is_confirmed: bool,
) -> None:
    """Make a cluster on AWS or Azure: a head, and workers that come when a job asks for them.

    It looks first (credentials, permissions, quota, image, zones), shows what it will cost and asks. Given again, it
    goes on where it was cut off, and leaves a cluster that runs as it is.

    \b
    Examples:
      periflow-ray cluster up --vm aws-24gb-a10g-1g-us-east-1-spot --autostop 30m
      periflow-ray cluster up --vm azure-16gb-v100-4g-eastus-spot --vm azure-16gb-v100-4g-eastus --max-nodes 4
    """
    from periflow_ray.cluster.caller_address import check_addresses, find_own_addresses
    from periflow_ray.cluster.config.spec import build_spec, suggest_name
    from periflow_ray.cluster.lifecycle import UpOptions, bring_up
    from periflow_ray.cluster.providers import open_provider
    from periflow_ray.cluster.records import find_cluster
    from periflow_ray.cluster.secrets import find_secrets
    from periflow_ray.plan.catalogue import find_vm

    known = find_cluster(root, name) if name is not None else None
    if not vm_names:
        if known is None:
            raise UsageError("which VM type? Give --vm NAME. List them: periflow-ray vm list")
        vm_names = tuple(known.vm_names)
    vms = [find_vm(vm_name) for vm_name in vm_names]
    spec = build_spec(
        name or suggest_name(vms[0]),
        vms,
        max_num_nodes=max_nodes,
        idle_timeout_minutes=idle_minutes,
        disk_gib=disk_gib,
    )
    options = UpOptions(
        ssh_from=check_addresses(ssh_from) if ssh_from else find_own_addresses(),
        wheels_dir=_find_wheels(wheels_dir),
        created_by=user_name(),
        autostop_s=autostop_s,
        max_cost_usd=max_cost,
    )
    _require_shared_root(root)
    root.check_writable()
    talk = talk_console()
    provider = open_provider(spec.cloud, spec.region)
    machines = provider.list_machines(spec.name)
    findings = list(provider.check(spec, is_new=not machines))
    _show_findings(talk, findings)
    bad = [finding for finding in findings if finding.verdict == "bad"]
    if bad:
        raise ClusterError(f"cluster '{spec.name}' cannot be made: " + "; ".join(finding.text for finding in bad))
    for line in describe_costs(spec):
        talk.print(line, soft_wrap=True)
    if not is_confirmed:
        click.confirm(f"Make cluster '{spec.name}' in {spec.region}?", abort=True, err=True, default=True)
    began_s = time.monotonic()

    def tell(text: str) -> None:
        seconds = int(time.monotonic() - began_s)
        talk.print(f"{seconds // 60:3d}:{seconds % 60:02d}  {text}", soft_wrap=True)

    try:
        record = bring_up(root, spec, provider, find_secrets(root.uri, spec.name), options, tell)
    except (ClusterError, KeyboardInterrupt):
        talk.print(
            f"Cluster '{spec.name}' is not up. What exists: periflow-ray cluster status {spec.name}    Go on: the same "
            f"command again    Remove it: periflow-ray cluster down {spec.name}",
            soft_wrap=True,
        )
        raise
    click.echo(f"Cluster '{record.name}' is up.")
    talk.print(
        f"Next: periflow-ray submit --address {record.name} -f pf-template.yml -d .    End it: periflow-ray cluster "
        f"down {record.name}",
        soft_wrap=True,
    )


def describe_costs(spec: ClusterSpec) -> list[str]:
    """What a cluster costs, in sentences for whoever is about to make it."""
    from periflow_ray.cluster.config.render import describe_price, head_usd_per_hour
    from periflow_ray.cluster.providers.prices import vm_usd_per_hour

    head = head_usd_per_hour(spec)
    most = head + spec.max_num_nodes * max(vm_usd_per_hour(vm) for vm in spec.vms)
    lines = [f"Price per hour: head about ${head:.2f}, from now on until 'cluster down'."]
    lines += [f"  each worker {vm.name}: {describe_price(vm)}, only while jobs use it" for vm in spec.vms]
    return [*lines, f"  at most {spec.max_num_nodes} workers at a time, so at most ${most:,.2f} in all"]


def _show_findings(talk: Console, findings: Sequence[Finding]) -> None:
    for finding in findings:
        talk.print(f"{_SIGNS[finding.verdict]:7}  {finding.subject}: {finding.text}", soft_wrap=True)


def _require_shared_root(root: StorageRoot) -> None:
    if root.is_local:
        raise UsageError(
            f"storage root '{root.uri}' is a folder of this machine, and a cluster's nodes cannot reach it. Name a "
            "bucket or container: --storage s3://BUCKET/PREFIX or abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX"
        )


def _find_wheels(given: Path | None) -> Path:
    chosen = given or Path("cluster_configs/wheels")
    if not any(chosen.glob("periflow_ray-*.whl")):
        raise UsageError(
            f"there is no wheel of periflow-ray in '{chosen}' for the nodes. Make it: scripts/cluster-wheels (in a "
            "checkout), and name its folder: --wheels cluster_configs/wheels"
        )
    return chosen
