"""What ``cluster up`` and ``submit --up`` have in common: the look before, the price, the question, the progress."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from periflow_ray.cli.output import talk_console
from periflow_ray.cluster.lifecycle import UpOptions
from periflow_ray.errors import ClusterError, UsageError
from periflow_ray.jobs.user import user_name

if TYPE_CHECKING:
    from rich.console import Console

    from periflow_ray.cluster.config.spec import ClusterSpec
    from periflow_ray.cluster.providers.provider import Finding
    from periflow_ray.store.root import StorageRoot

SSH_FROM_VARIABLE = "PERIFLOW_SSH_FROM"
WHEELS_VARIABLE = "PERIFLOW_CLUSTER_WHEELS"
_SIGNS = {"good": "ok", "warning": "warning", "bad": "NO"}


def choose_options(
    root: StorageRoot,
    ssh_from: str | None,
    wheels_dir: Path | None,
    *,
    autostop_s: float | None,
    max_cost_usd: float | None,
) -> UpOptions:
    """How a cluster is brought up, with what the environment says where the command line says nothing.

    Raises:
        UsageError: nodes could not reach the storage root, there are no wheels, or the addresses are none.
        ClusterError: this machine's address is not named, and cannot be found out.
    """
    from periflow_ray.cluster.caller_address import check_addresses, find_own_addresses

    given = ssh_from or os.environ.get(SSH_FROM_VARIABLE)
    addresses = check_addresses(given) if given else None
    wheels_dir = find_wheels(wheels_dir)
    _require_shared_root(root)
    root.check_writable()
    return UpOptions(
        ssh_from=addresses or find_own_addresses(),
        wheels_dir=wheels_dir,
        created_by=user_name(),
        autostop_s=autostop_s,
        max_cost_usd=max_cost_usd,
    )


def make_cluster(root: StorageRoot, spec: ClusterSpec, options: UpOptions, *, is_confirmed: bool) -> None:
    """Look, say what it will cost, ask, and bring a cluster up, with a line about each step.

    Raises:
        ClusterError: something is in the way, or it did not come up; what exists then was said.
    """
    from periflow_ray.cluster.lifecycle import bring_up
    from periflow_ray.cluster.providers import open_provider
    from periflow_ray.cluster.secrets import find_secrets

    talk = talk_console()
    provider = open_provider(spec.cloud, spec.region)
    machines = provider.list_machines(spec.name)
    findings = list(provider.check(spec, is_new=not machines))
    show_findings(talk, findings)
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
        bring_up(root, spec, provider, find_secrets(root.uri, spec.name), options, tell)
    except (ClusterError, KeyboardInterrupt):
        talk.print(
            f"Cluster '{spec.name}' is not up. What exists: periflow-ray cluster status {spec.name}    Go on: the same "
            f"command again    Remove it: periflow-ray cluster down {spec.name}",
            soft_wrap=True,
        )
        raise


def describe_costs(spec: ClusterSpec) -> list[str]:
    """What a cluster costs, in sentences for whoever is about to make it."""
    from periflow_ray.cluster.config.render import describe_price, head_usd_per_hour
    from periflow_ray.cluster.providers.prices import vm_usd_per_hour

    head = head_usd_per_hour(spec)
    most = head + spec.max_num_nodes * max(vm_usd_per_hour(vm) for vm in spec.vms)
    lines = [f"Price per hour: head about ${head:.2f}, from now on until 'cluster down'."]
    lines += [f"  each worker {vm.name}: {describe_price(vm)}, only while jobs use it" for vm in spec.vms]
    return [*lines, f"  at most {spec.max_num_nodes} workers at a time, so at most ${most:,.2f} in all"]


def show_findings(talk: Console, findings: Sequence[Finding]) -> None:
    """A line about each thing that was looked at."""
    for finding in findings:
        talk.print(f"{_SIGNS[finding.verdict]:7}  {finding.subject}: {finding.text}", soft_wrap=True)


def _require_shared_root(root: StorageRoot) -> None:
    if root.is_local:
        raise UsageError(
            f"storage root '{root.uri}' is a folder of this machine, and a cluster's nodes cannot reach it. Name a "
            "bucket or container: --storage s3://BUCKET/PREFIX or abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX"
        )


def find_wheels(given: Path | None) -> Path:
    """The folder with the wheels for the nodes.

    Raises:
        UsageError: it has none of periflow-ray.
    """
    chosen = given or Path(os.environ.get(WHEELS_VARIABLE) or "cluster_configs/wheels")
    if not any(chosen.glob("periflow_ray-*.whl")):
        raise UsageError(
            f"there is no wheel of periflow-ray in '{chosen}' for the nodes. Make it: scripts/cluster-wheels (in a "
            "checkout), and name its folder: --wheels cluster_configs/wheels"
        )
    return chosen
