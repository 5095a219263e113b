"""What ``cluster up`` and ``submit --up`` have in common: the look before, the price, the question, the progress."""

from __future__ import annotations

import hashlib
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from periflow_ray.cli.format import format_duration
from periflow_ray.cli.options import confirm
from periflow_ray.cli.output import talk_console
from periflow_ray.cluster.lifecycle import UpOptions
from periflow_ray.errors import ClusterError, UsageError
from periflow_ray.jobs.user import user_name

if TYPE_CHECKING:
    from rich.console import Console

    from periflow_ray.cluster.config.spec import ClusterSpec
    from periflow_ray.cluster.providers.provider import Finding
    from periflow_ray.cluster.wheels import WantedWheels
    from periflow_ray.store.root import StorageRoot

SSH_FROM_VARIABLE = "PERIFLOW_SSH_FROM"
WHEELS_VARIABLE = "PERIFLOW_CLUSTER_WHEELS"
_SIGNS = {"good": "ok", "warning": "warning", "bad": "NO"}


def choose_options(
    root: StorageRoot,
    spec: ClusterSpec,
    ssh_from: str | None = None,
    wheels_dir: Path | None = None,
    packages: tuple[str, ...] = (),
    *,
    autostop_s: float | None,
    max_cost_usd: float | None,
) -> UpOptions:
    """How a cluster is brought up, with what the environment says where the command line says nothing.

    Raises:
        UsageError: nodes could not reach the storage root, the given folder has no wheels, or the addresses are none.
        ClusterError: this machine's address is not named, and cannot be found out.
    """
    from periflow_ray.cluster.caller_address import check_addresses, find_own_addresses

    given = ssh_from or os.environ.get(SSH_FROM_VARIABLE)
    given_by = "--ssh-from" if ssh_from else f"${SSH_FROM_VARIABLE}"
    addresses = check_addresses(given, given_by) if given else None
    wanted = _want_wheels(spec, packages)
    given_dir = _find_given_wheels(wheels_dir, wanted)
    if given_dir is not None and packages:
        raise UsageError(f"--pip adds to wheels that are collected here, and not to those in '{given_dir}'.")
    _require_shared_root(root)
    return UpOptions(
        ssh_from=addresses or find_own_addresses(),
        wheels_dir=given_dir or _own_wheels_dir(wanted),
        wanted_wheels=None if given_dir else wanted,
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
    from periflow_ray.cluster.records import find_cluster
    from periflow_ray.cluster.secrets import find_secrets

    talk = talk_console()
    talk.print(f"Looks at your account in {spec.region} ...")
    provider = open_provider(spec.cloud, spec.region)
    root.check_writable()
    machines = provider.list_machines(spec.name)
    findings = list(provider.check(spec, is_new=not machines))
    show_findings(talk, findings)
    bad = [finding for finding in findings if finding.verdict == "bad"]
    if bad:
        raise ClusterError(f"cluster '{spec.name}' cannot be made: " + "; ".join(finding.text for finding in bad))
    for line in describe_costs(spec, options.autostop_s):
        talk.print(line, soft_wrap=True)
    if not is_confirmed:
        confirm(f"Make cluster '{spec.name}' in {spec.region}?", default=True)
    began_s = time.monotonic()

    def tell(text: str) -> None:
        seconds = int(time.monotonic() - began_s)
        talk.print(f"{seconds // 60:3d}:{seconds % 60:02d}  {text}", soft_wrap=True)

    try:
        bring_up(root, spec, provider, find_secrets(root.uri, spec.name), options, tell)
    except (ClusterError, KeyboardInterrupt):
        if find_cluster(root, spec.name) is None:
            talk.print("Nothing was made.")
            raise
        talk.print(
            f"Cluster '{spec.name}' is not up. What exists: periflow-ray cluster status {spec.name}    Go on: the same "
            f"command again    Remove it: periflow-ray cluster down {spec.name}",
            soft_wrap=True,
        )
        raise


def describe_costs(spec: ClusterSpec, autostop_s: float | None) -> list[str]:
    """What a cluster costs, in sentences for whoever is about to make it."""
    from periflow_ray.cluster.config.render import describe_price, head_usd_per_hour
    from periflow_ray.cluster.providers.prices import vm_usd_per_hour

    head = head_usd_per_hour(spec)
    most = head + spec.max_num_nodes * max(vm_usd_per_hour(vm) for vm in spec.vms)
    end = "'cluster down'"
    if autostop_s is not None:
        end += f", or until no job has run for {format_duration(autostop_s)}"
    lines = [f"Price per hour: head about ${head:.2f}, from now on until {end}."]
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


def _own_wheels_dir(wanted: WantedWheels) -> Path:
    """Where this machine keeps wheels for nodes: other ones in another folder, which an 'up' may be copying."""
    from periflow_ray.user_dirs import data_dir

    kind = "-".join([*wanted.machines, *(["torch"] if wanted.has_torch else [])])
    own = hashlib.sha256("\n".join(wanted.packages).encode()).hexdigest()[:8]
    return data_dir() / "wheels" / (f"{kind}-{own}" if wanted.packages else kind)


def _want_wheels(spec: ClusterSpec, packages: tuple[str, ...]) -> WantedWheels:
    from periflow_ray.cluster.wheels import MACHINES, WantedWheels

    # AWS's word for it, and Python's; the head is an x86-64 in any case.
    has_arm = any(vm.architecture == "arm64" for vm in spec.vms)
    # Of the images, Azure's has no PyTorch.
    return WantedWheels(machines=MACHINES[: 1 + has_arm], packages=packages, has_torch=spec.cloud == "azure")


def _find_given_wheels(given: Path | None, wanted: WantedWheels) -> Path | None:
    """The folder with wheels that the user names; None if none is named.

    Raises:
        UsageError: it has none of periflow-ray.
    """
    variable = os.environ.get(WHEELS_VARIABLE)
    chosen = given or (Path(variable) if variable else None)
    if chosen is not None and not any(chosen.glob("periflow_ray-*.whl")):
        options = ["--dest", shlex.quote(str(chosen)), *(["--torch"] if wanted.has_torch else [])]
        options += [word for machine in wanted.machines for word in ("--machine", machine) if len(wanted.machines) > 1]
        raise UsageError(
            f"there is no wheel of periflow-ray in '{chosen}' for the nodes. Make it: periflow-ray cluster wheels "
            f"{' '.join(options)}. Or leave out {'--wheels' if given else '$' + WHEELS_VARIABLE}: then they are "
            "collected."
        )
    return chosen
