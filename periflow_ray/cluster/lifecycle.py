"""From the names of VM types to a cluster that runs, and back to an account that has nothing of it."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import yaml

from periflow_ray.cluster.config.render import Mounts, render_yaml
from periflow_ray.cluster.config.spec import ClusterSpec
from periflow_ray.cluster.launcher import launch_head
from periflow_ray.cluster.providers.provider import (
    RUNNING_STATES,
    Machine,
    Preparation,
    Provider,
    ProviderError,
    Resource,
)
from periflow_ray.cluster.records import HEAD, About, ClusterRecord, cluster_key, find_cluster, write_cluster
from periflow_ray.cluster.secrets import ClusterSecrets
from periflow_ray.cluster.ssh import run_on_head
from periflow_ray.cluster.wheels import WantedWheels, collect_wheels
from periflow_ray.errors import ClusterError, UsageError
from periflow_ray.store.documents import dump_document
from periflow_ray.store.root import StorageRoot

# A provider takes minutes to end machines, and only then lets go of what they used.
REMOVE_TIMEOUT_S = 900.0
_REMOVE_POLL_S = 3.0
# A machine that was being launched when its cluster ended shows up this late.
_LATE_S = 5.0
_TASK_TIMEOUT_S = 120.0
_TASK = """
import ray
ray.init(address="auto", log_to_driver=False, logging_level="error")
print("answer", ray.get(ray.remote(num_cpus=0)(lambda: 42).remote(), timeout=100))
"""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class UpOptions:
    """How a cluster is brought up.

    Args:
        ssh_from: addresses that may use SSH, in CIDR notation.
        wheels_dir: what the nodes are set up with.
        wanted_wheels: what it gets first; None if it is the user's own.
    """

    ssh_from: str
    wheels_dir: Path
    wanted_wheels: WantedWheels | None
    created_by: str
    autostop_s: float | None = None
    max_cost_usd: float | None = None


def bring_up(
    root: StorageRoot, spec: ClusterSpec, provider: Provider, secrets: ClusterSecrets, options: UpOptions, tell: Tell
) -> ClusterRecord:
    """Make a cluster, or go on where an earlier try was cut off; returns once a task has run on its head.

    A cluster that is up stays as it is; who may use SSH, and when it ends by itself, is as it is asked for now.

    Raises:
        UsageError: there is a cluster of this name, and it is another one, or has other packages.
        ProviderError: the provider refused something; what was made until then stays, for the next try.
        ClusterError: the head could not be set up.
    """
    before = find_cluster(root, spec.name)
    machines = provider.list_machines(spec.name)
    _require_ours(before, spec, secrets, machines)
    is_up = before is not None and before.status == "running" and any(_is_running_head(each) for each in machines)
    packages = [] if options.wanted_wheels is None else list(options.wanted_wheels.packages)
    if before is not None and is_up:
        if packages and sorted(packages) != sorted(before.packages):
            raise UsageError(
                f"cluster '{spec.name}' runs, and its nodes have what it was made with (--pip "
                f"{', '.join(before.packages) or 'was not given'}). End it before you make it with other packages, or "
                "leave --pip out."
            )
        # Its head has a YAML that says how large it may be. A limit that is not named now stays: it may be forgotten.
        record = dataclasses.replace(
            before,
            autostop_s=before.autostop_s if options.autostop_s is None else options.autostop_s,
            max_cost_usd=before.max_cost_usd if options.max_cost_usd is None else options.max_cost_usd,
        )
    else:
        record = ClusterRecord(
            name=spec.name,
            cloud=spec.cloud,  # type: ignore[arg-type]
            region=spec.region,
            vm_names=[vm.name for vm in spec.vms],
            max_num_nodes=spec.max_num_nodes,
            idle_timeout_minutes=spec.idle_timeout_minutes,
            created_by=options.created_by,
            created_on=socket.gethostname(),
            created_unix_s=before.created_unix_s if before is not None and machines else time.time(),
            status="creating",
            head_address=before.head_address if before is not None and machines else None,
            autostop_s=options.autostop_s,
            max_cost_usd=options.max_cost_usd,
            packages=packages,
        )
    secrets.make()
    if not machines:
        # The account and the YAML of an earlier cluster of this name.
        root.delete(cluster_key(spec.name))
    if not is_up:
        if options.wanted_wheels is not None:
            collect_wheels(options.wheels_dir, options.wanted_wheels, tell)
        write_cluster(root, record)
    config = yaml.safe_load(_render(root, spec, secrets, options))
    provider.prepare(
        Preparation(
            spec=spec,
            key_path=str(secrets.key_path),
            public_key=secrets.read_public_key(),
            ssh_from=options.ssh_from,
            storage_uri=root.uri,
            tell=tell,
        ),
        config,
    )
    if not is_up:
        text = yaml.safe_dump(config, sort_keys=False)
        root.write_bytes(cluster_key(spec.name, "cluster.yaml"), text.encode())
        config_path = secrets.directory / "cluster.yaml"
        config_path.write_text(text, encoding="utf-8")
        secrets.forget_hosts()
        launch_head(config_path, secrets.directory / "up.log", tell)
    address = _find_head_address(provider, spec.name)
    if address != record.head_address:
        record = dataclasses.replace(record, head_address=address)
        write_cluster(root, record)
    tell("running a first task on the head")
    run_on_head(record, secrets, ["python", "-"], stdin=_TASK, timeout_s=_TASK_TIMEOUT_S)
    record = dataclasses.replace(record, status="running")
    write_cluster(root, record)
    return record


def _is_running_head(machine: Machine) -> bool:
    return machine.node_type == HEAD and machine.state in RUNNING_STATES and machine.setup == "up-to-date"


def _require_ours(
    before: ClusterRecord | None, spec: ClusterSpec, secrets: ClusterSecrets, machines: list[Machine]
) -> None:
    if not machines:
        return
    if before is not None and (before.region, before.vm_names) != (spec.region, [vm.name for vm in spec.vms]):
        raise UsageError(
            f"there is a cluster '{spec.name}' with other VM types ({', '.join(before.vm_names)}). Give the new one "
            f"another --name, or end that one first: periflow-ray cluster down {spec.name}"
        )
    if not secrets.are_there:
        where = "another machine" if before is None else f"'{before.created_on}'"
        raise UsageError(
            f"cluster '{spec.name}' has machines in this account, and its key is on {where}. Go on there, choose "
            f"another --name, or end it first: periflow-ray cluster down {spec.name}"
        )


def _render(root: StorageRoot, spec: ClusterSpec, secrets: ClusterSecrets, options: UpOptions) -> str:
    about = secrets.directory / "about.json"
    about.write_bytes(dump_document(About(spec.name, root.uri)))
    mounts = Mounts(
        node_dir=str(resources.files("periflow_ray.cluster") / "node"),
        wheels_dir=str(options.wheels_dir.resolve()),
        token_path=str(secrets.token_path),
        about_path=str(about),
    )
    return render_yaml(spec, "cluster.yaml", spec.name, mounts)


def _find_head_address(provider: Provider, name: str) -> str:
    for machine in provider.list_machines(name):
        if machine.node_type == HEAD and (machine.public_address or machine.address):
            return machine.public_address or machine.address or ""
    raise ClusterError(f"cluster '{name}' has no head at the provider, although Ray has just started it")


def take_down(provider: Provider, name: str, tell: Tell, *, timeout_s: float = REMOVE_TIMEOUT_S) -> dict[Resource, str]:
    """Remove everything of a cluster from the account, as the provider's own listing says, and look until it is gone.

    Returns:
        What is left, and why.
    Raises:
        ProviderError: the account cannot be listed.
    """
    deadline = time.monotonic() + timeout_s
    told: set[tuple[str, str]] = set()
    had_machines = is_sure = False
    while True:
        resources_left = provider.list_resources(name)
        if not resources_left:
            if is_sure or not had_machines:
                return {}
            is_sure = True
            time.sleep(_LATE_S)
            continue
        is_sure = False
        refusals = {}
        for resource in resources_left:
            had_machines = had_machines or resource.kind in ("instance", "virtual machine")
            if (resource.kind, resource.id) not in told:
                tell(f"removing {resource}")
                told.add((resource.kind, resource.id))
            try:
                provider.remove(resource)
            except ProviderError as err:
                # What something else still uses is free a little later.
                refusals[resource] = str(err)
        if time.monotonic() > deadline:
            still_there = provider.list_resources(name)
            return {resource: refusals.get(resource, "it is still there") for resource in still_there}
        time.sleep(_REMOVE_POLL_S)
