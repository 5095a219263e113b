"""A plan as ``submit --dry-run`` shows it: rows for people, a document for programs, secrets masked in both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from periflow_ray.errors import MASK
from periflow_ray.plan.catalogue import describe_usd
from periflow_ray.plan.environment import NodeFacts, device_environment, node_environment
from periflow_ray.plan.job_plan import JobPlan
from periflow_ray.plan.masking import mask_address, mask_environment, mask_text
from periflow_ray.plan.mounts import Mount, rewrite_paths

SANDBOX_PLACEHOLDER = "<sandbox>"


def describe_plan(plan: JobPlan) -> list[tuple[str, str]]:
    """List (label, value) rows; a value may have several lines.

    On this machine mount paths appear below ``<sandbox>``, as the job will see them.
    """
    return list(_rows(plan))


def plan_document(plan: JobPlan) -> dict[str, Any]:
    """The plan's JSON with secrets masked, for ``-o json`` and ``-o yaml``; not to be submitted."""
    document = plan.model_dump(mode="json")
    document["env"] = _masked_environment(plan, plan.env)
    document["command"] = mask_text(plan.command)
    for key in ("install_setup", "teardown", "python"):
        document[key] = _mask_texts(document[key])
    document["storage_uri"] = mask_text(plan.storage_uri)
    if plan.plugin and plan.plugin.webhook and plan.plugin.webhook.url:
        document["plugin"]["webhook"]["url"] = mask_address(plan.plugin.webhook.url)
    return document


def _rows(plan: JobPlan) -> Iterator[tuple[str, str]]:
    yield "Name", plan.name or "-"
    yield "Experiment", plan.experiment or "-"
    yield "VM", _describe_vm(plan)
    if plan.fallback_vms:
        yield "Else on", ", ".join(vm.name for vm in plan.fallback_vms)
    yield "Nodes", f"{plan.num_nodes} x {_count(plan.devices_per_node, 'device')}"
    yield "Devices", str(plan.num_devices)
    if plan.min_num_nodes < plan.num_nodes:
        least = _count(plan.min_num_nodes * plan.devices_per_node, "device")
        yield "Elastic", f"goes on with at least {least} while machines are missing"
    else:
        yield "Elastic", "no: waits until it has all of its devices"
    yield "Per device", _describe_resources(plan)
    yield "Image", _describe_image(plan)
    yield "Python", _describe_python(plan)
    yield f"Command (once per {plan.launch_mode})", mask_text(_as_seen(plan, plan.command))
    if plan.install_setup is not None:
        yield "Setup", "only installs: not run again on a node where it succeeded"
    if plan.teardown is not None:
        yield "Teardown (once per node)", mask_text(_as_seen(plan, plan.teardown))
    yield "Mounts", "\n".join(f"{_as_seen(plan, mount.path)}  {_describe_source(plan, mount)}" for mount in plan.mounts)
    yield "Environment", "\n".join(f"{name}={value}" for name, value in _shown_environment(plan).items())
    if plan.keep_last or plan.keep_best:
        yield "Checkpoints kept", _describe_kept(plan)
    if plan.upload_bandwidth_bytes_per_s is not None:
        yield "Upload bandwidth", f"at most {plan.upload_bandwidth_bytes_per_s / 10**6:.6g} MB/s per node"
    yield "Storage", _describe_storage(plan) + ("" if plan.fsync else ", without fsync")
    yield "Max failures", str(plan.max_failures)
    if plan.hang_timeout_s is not None:
        yield "Hang timeout", f"{plan.hang_timeout_s:.12g} s without a step on any rank"
    if plan.wait_s is not None:
        yield "Waits", f"at most {plan.wait_s:.12g} s for machines"
    if plan.plugin:
        yield "Plugins", ", ".join(plan.plugin.model_dump(exclude_none=True)) or "-"
    yield "Price per hour", _describe_price(plan)


def _describe_image(plan: JobPlan) -> str:
    if plan.image is None:
        return "-: the command runs in the cluster's Python environment"
    options = f", with {' '.join(plan.image_options)}" if plan.image_options else ""
    if plan.require_image:
        where = "a node where it cannot be used fails"
    elif plan.vm.is_local:
        where = "if this machine has it, and Docker or Podman"
    else:
        where = "on nodes with Docker or Podman"
    return f"{plan.image} ({where}){options}"


def _describe_vm(plan: JobPlan) -> str:
    vm = plan.vm
    if vm.is_local:
        kind = "CPU slots" if vm.accelerator == "CPU" else "GPUs"
        return f"{vm.name} (each node is a stand-in on this machine; devices are {kind})"
    spot = ", spot" if vm.is_spot else ""
    retired = ""
    if vm.retired_on:
        retired = f"; withdrawn by the provider on {vm.retired_on}, the nearest today is {vm.successor}"
    gpus = f"{vm.num_devices} x {vm.accelerator} {vm.device_memory_gib:g} GiB"
    return f"{vm.name} ({vm.instance_type} in {vm.region}, {gpus}{spot}{retired})"


def _describe_resources(plan: JobPlan) -> str:
    parts = [_count(plan.gpus_per_device, "GPU")] if plan.gpus_per_device else []
    parts.append(f"{plan.cpus_per_device:g} CPU{'' if plan.cpus_per_device == 1 else 's'}")
    if plan.memory_bytes_per_device is not None:
        parts.append(f"{plan.memory_bytes_per_device / 2**30:.4g} GiB memory")
    return ", ".join(parts)


def _mask_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _mask_texts(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_mask_texts(inner) for inner in value]
    return mask_text(value) if isinstance(value, str) else value


def _describe_python(plan: JobPlan) -> str:
    python = plan.python
    owner = "the cluster's" if plan.image is None else "the image's where that is used, else the cluster's"
    if python is None:
        return f"{owner}; what the command installs is for this job alone"
    named = [*([f"those of {python.requirements}"] if python.requirements else []), *map(mask_text, python.packages)]
    packages = f"with {', '.join(named)}" if named else "without packages"
    version = f"Python {python.version}" if python.version else owner
    if python.system_packages is False:
        return f"{version}, {packages} and nothing else"
    unless = " if it is of that version" if python.version and python.system_packages is None else ""
    below = "the cluster's packages" if plan.image is None else "its packages"
    return f"{version}, {packages}, above {below}{unless}"


def _describe_source(plan: JobPlan, mount: Mount) -> str:
    if mount.kind == "workspace":
        return f"workspace, as {_as_seen(plan, mount.path)}/{mount.source}" if mount.source else "workspace"
    if mount.kind == "checkpoint":
        return "output checkpoints"
    return f"{'input checkpoint' if mount.kind == 'checkpoint_input' else 'dataset'} {mount.source}"


def _shown_environment(plan: JobPlan) -> dict[str, str]:
    first_node = NodeFacts(
        num_nodes=plan.num_nodes,
        node_rank=0,
        master_addr="",
        master_port=0,
        attempt=1,
        processed_iters=0,
        output_checkpoint_dir=plan.output_checkpoint_dir,
    )
    decided_later = ["MASTER_ADDR", "NODE_RANK", "PERIFLOW_ATTEMPT", "PROCESSED_ITERS"]
    decided_later += {"MASTER_PORT"} - plan.env.keys()
    if plan.launch_mode == "device":
        environment = device_environment(plan, first_node, local_rank=0)
        decided_later += ["RANK", "LOCAL_RANK"]
    else:
        environment = node_environment(plan, first_node)
    shown = {name: _as_seen(plan, value) for name, value in environment.items()}
    return _masked_environment(plan, shown | dict.fromkeys(decided_later, "(set when the job starts)"))


def _masked_environment(plan: JobPlan, env: dict[str, str]) -> dict[str, str]:
    return {**mask_environment(env), **dict.fromkeys(plan.secret_names, MASK)}


def _as_seen(plan: JobPlan, text: str) -> str:
    return rewrite_paths(text, plan.mount_paths, SANDBOX_PLACEHOLDER) if plan.vm.is_local else text


def _describe_kept(plan: JobPlan) -> str:
    # The newest one always stays: a restart needs it.
    num_newest = plan.keep_last or 1
    parts = ["the newest" if num_newest == 1 else f"the newest {num_newest}"]
    if plan.keep_best:
        extreme = "lowest" if plan.keep_best.mode == "min" else "highest"
        parts.append(f"the one with the {extreme} {plan.keep_best.metric!r}")
    return " and ".join(parts)


def _describe_storage(plan: JobPlan) -> str:
    uri = mask_text(plan.storage_uri)
    return f"{uri} (credential {plan.storage_credential!r})" if plan.storage_credential else uri


def _describe_price(plan: JobPlan) -> str:
    vm = plan.vm
    if vm.is_local:
        return "-"
    if vm.on_demand_price_per_hour_usd is None:
        return f"unknown for {vm.name}"
    source = f"{vm.price_source}, {vm.price_date}"
    if plan.price_per_hour_usd is not None:
        return f"about {describe_usd([plan.price_per_hour_usd])} ({source})"
    at_most = f"at most {describe_usd([plan.num_nodes * vm.on_demand_price_per_hour_usd])}"
    if vm.spot_price_per_hour_usd is None:
        return f"{at_most}: spot prices move, this is the on-demand price ({source})"
    spot = describe_usd(plan.num_nodes * price for price in vm.spot_price_per_hour_usd)
    return f"{spot} as spot prices were, {at_most}, the price on demand ({source})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
