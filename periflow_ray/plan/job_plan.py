"""What will run: a template and a VM type become a ``JobPlan``, before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from periflow_ray.errors import PlanError
from periflow_ray.plan.catalogue import VmType
from periflow_ray.plan.declared_mounts import declare_mounts
from periflow_ray.plan.grid import WorkerGrid, split_devices
from periflow_ray.plan.mounts import Mount
from periflow_ray.plan.resources import (
    cpus_per_device,
    memory_bytes_per_device,
    require_local_gpus,
    require_same_shape,
)
from periflow_ray.plan.setup_lines import InstallSetup, find_install_setup
from periflow_ray.spec.models import CheckpointInput, DataSpec, JobSpec, KeepBest, LaunchMode, PluginSpec, SetupAndRun
from periflow_ray.spec.python import PythonSpec


class ElasticPlan(BaseModel):
    """How few nodes an elastic job goes on with while machines are missing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_num_nodes: int


class JobPlan(BaseModel):
    """Everything that running a job needs, as plain data; ``submit`` and ``runtime`` meet only through its JSON.

    ``command`` is bash, with the mount paths as the template has them. ``env`` is the template's ``env_var`` and
    what the command line added; the values of ``secret_names`` are never part of a plan. ``cpus_per_device``,
    ``memory_bytes_per_device`` and ``gpus_per_device`` are what to ask Ray for. ``upload_bandwidth_bytes_per_s`` is
    the most that one node's checkpoint uploads may use; without ``fsync`` a loss of power may cost checkpoints.
    ``wait_s`` is for how long the job waits for machines before it fails; None forever.
    ``hang_timeout_s`` is how long no rank may make a step; None forever. ``elastic`` is None where the template asks
    for no fewer nodes. ``storage_credential`` is a name, never a value; None leaves the storage root to its cloud's
    usual chain.
    ``fallback_vms`` are taken, in their order, where the cloud has no ``vm``.
    ``price_per_hour_usd`` is for all nodes; None where it is unknown or moves (spot).
    ``workspace_of`` is the job that has the workspace, None for the job itself; ``hparams`` are the parameters of a
    sweep's trial; ``start_from`` is the id of another job's checkpoint, which this one resumes until it has its own.
    ``install_setup`` is what ``command`` consists of where its first part only installs; ``teardown`` runs after it.
    """

    # A stored plan may be of a later version; what it has more is ignored, as in all stored documents.
    model_config = ConfigDict(frozen=True, extra="ignore")

    plan_version: Literal[1] = 1
    name: str | None
    experiment: str | None
    vm: VmType
    fallback_vms: tuple[VmType, ...] = ()
    num_devices: int
    num_nodes: int
    devices_per_node: int
    launch_mode: LaunchMode
    command: str
    env: dict[str, str]
    secret_names: tuple[str, ...]
    image: str | None
    image_credential_id: str | None
    image_options: tuple[str, ...] = ()
    require_image: bool = False
    workspace_mount_path: str
    workspace_dir_name: str | None
    mounts: tuple[Mount, ...]
    output_checkpoint_dir: str | None
    checkpoint_input: CheckpointInput | None
    keep_last: int | None
    keep_best: KeepBest | None
    upload_bandwidth_bytes_per_s: int | None
    fsync: bool = True
    data: DataSpec | None
    cpus_per_device: float
    memory_bytes_per_device: int | None
    gpus_per_device: int
    max_failures: int
    hang_timeout_s: float | None
    wait_s: float | None = None
    elastic: ElasticPlan | None
    storage_uri: str
    storage_credential: str | None
    price_per_hour_usd: float | None
    plugin: PluginSpec | None
    workspace_of: int | None = None
    hparams: dict[str, Any] | None = None
    start_from: str | None = None
    install_setup: InstallSetup | None = None
    teardown: str | None = None
    python: PythonSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_number_of_nodes(cls, given: Any) -> Any:
        # Plans that were stored before `elastic` had min_num_nodes: below num_nodes in an elastic job only.
        if not isinstance(given, Mapping) or "min_num_nodes" not in given:
            return given
        fields = {name: value for name, value in given.items() if name != "min_num_nodes"}
        is_elastic = given["min_num_nodes"] != given.get("num_nodes")
        return {**fields, "elastic": {"min_num_nodes": given["min_num_nodes"]} if is_elastic else None}

    @property
    def min_num_nodes(self) -> int:
        """Nodes that are enough to go on; all of them unless the job is elastic."""
        return self.num_nodes if self.elastic is None else self.elastic.min_num_nodes

    @property
    def record_fields(self) -> dict[str, Any]:
        """What the record of a job says of its plan."""
        return {
            "name": self.name,
            "experiment": self.experiment,
            "vm": self.vm.name,
            "accelerator": self.vm.accelerator,
            "num_devices": self.num_devices,
            "num_nodes": self.num_nodes,
            "dataset": self.data.name if self.data else None,
        }

    @property
    def vm_names(self) -> tuple[str, ...]:
        """The VM types that the job may run on, the first choice first."""
        return tuple(vm.name for vm in (self.vm, *self.fallback_vms))

    def usd_per_hour(self, vm_name: str | None) -> float | None:
        """The price of the job's machines, in US dollars per hour, on one of its VM types; by default on the first."""
        vm = next((vm for vm in self.fallback_vms if vm.name == vm_name), None)
        if vm is None or vm.price_per_hour_usd is None:
            return self.price_per_hour_usd
        return round(self.num_nodes * vm.price_per_hour_usd, 4)

    @property
    def resources_per_node(self) -> dict[str, float]:
        """What one node asks Ray for."""
        num_cpus = self.cpus_per_device * self.devices_per_node
        # Ray takes fractions below 1 only.
        resources: dict[str, float] = {"CPU": float(int(num_cpus)) if num_cpus > 1 else num_cpus}
        if self.gpus_per_device:
            resources["GPU"] = float(self.gpus_per_device * self.devices_per_node)
        if self.memory_bytes_per_device is not None:
            resources["memory"] = float(self.memory_bytes_per_device * self.devices_per_node)
        return resources

    @property
    def mount_paths(self) -> tuple[str, ...]:
        return tuple(mount.path for mount in self.mounts)


def build_plan(
    spec: JobSpec,
    vm: VmType,
    *,
    fallback_vms: Sequence[VmType] = (),
    storage_uri: str,
    storage_credential: str | None = None,
    upload_bandwidth_bytes_per_s: int | None = None,
    fsync: bool = True,
    workspace_dir_name: str | None = None,
    extra_env: Mapping[str, str] | None = None,
    secret_names: Sequence[str] = (),
    wait_s: float | None = None,
    use_image: bool | None = None,
    num_local_cpus: int | None = None,
    num_local_gpus: int | None = None,
) -> JobPlan:
    """Decide what a job runs on, with what, and where its files are.

    On this machine every device asks for at most one CPU, and for less where there are more devices than CPUs, so that
    any template fits; ``job_setting.resources`` can only lower that, and its memory is not asked for. On a cloud VM a
    device gets its share of the vCPUs less one for Ray's own processes, unless ``job_setting.resources`` says more.

    Args:
        spec: the template, command line options applied.
        vm: the VM type to run on; need not be the one that the template names (``--local``).
        fallback_vms: VM types to run on where the cloud has none of ``vm``, in this order.
        storage_uri: the storage root.
        storage_credential: name of the credential that opens it; None for the cloud's usual chain.
        upload_bandwidth_bytes_per_s: limit for the checkpoint uploads of one node; None for no limit.
        fsync: whether checkpoints in a storage root that is a folder outlive a loss of power.
        workspace_dir_name: name that the workspace directory has below its mount path; None if there is none yet.
        extra_env: environment variables that win over the template's.
        secret_names: variables whose values reach the job by another way; they are removed from the plan's ``env``.
        wait_s: for how long the job waits for machines before it fails; None forever.
        use_image: True for a job that fails where its image cannot be used, False for one that does without it. By
            default a cluster's nodes use it if they have a container engine; this machine if it has the image, too.
        num_local_cpus: CPUs of this machine; None if unknown.
        num_local_gpus: GPUs of this machine; None if unknown.
    Raises:
        PlanError: the devices do not divide over VMs, two mounts share a path, or a VM has too little for a device.
    """
    docker = spec.job_setting.docker
    for other in fallback_vms:
        require_same_shape(vm, other)
    grid = split_devices(spec.num_devices, vm)
    require_local_gpus(vm, spec.num_devices, num_local_gpus)
    cpus = [cpus_per_device(spec, each, grid, num_local_cpus) for each in (vm, *fallback_vms)]
    # The same for all of them: what the template asks for, if each of them has it.
    memory_bytes, *_ = [memory_bytes_per_device(spec, each, grid) for each in (vm, *fallback_vms)]
    env = {**docker.env_var, **(extra_env or {})}
    price = None if vm.price_per_hour_usd is None else round(grid.num_nodes * vm.price_per_hour_usd, 4)
    return JobPlan(
        name=spec.name,
        experiment=spec.experiment,
        vm=vm,
        fallback_vms=tuple(fallback_vms),
        num_devices=spec.num_devices,
        num_nodes=grid.num_nodes,
        devices_per_node=grid.devices_per_node,
        launch_mode=spec.job_setting.launch_mode,
        command=_one_bash_text(docker.command),
        env={name: value for name, value in env.items() if name not in secret_names},
        secret_names=tuple(dict.fromkeys(secret_names)),
        image=docker.image if use_image is not False else None,
        image_credential_id=docker.credential_id,
        image_options=tuple(docker.options),
        require_image=use_image is True and docker.image is not None,
        workspace_mount_path=spec.job_setting.workspace.mount_path,
        workspace_dir_name=workspace_dir_name,
        mounts=declare_mounts(spec, workspace_dir_name),
        output_checkpoint_dir=spec.checkpoint.output_checkpoint_dir if spec.checkpoint else None,
        checkpoint_input=spec.checkpoint.input if spec.checkpoint else None,
        keep_last=spec.checkpoint.keep_last if spec.checkpoint else None,
        keep_best=spec.checkpoint.keep_best if spec.checkpoint else None,
        upload_bandwidth_bytes_per_s=upload_bandwidth_bytes_per_s,
        fsync=fsync,
        data=spec.data,
        cpus_per_device=min(cpus),
        memory_bytes_per_device=memory_bytes,
        gpus_per_device=0 if vm.accelerator == "CPU" else 1,
        max_failures=spec.max_failures,
        hang_timeout_s=spec.hang_timeout_s,
        wait_s=wait_s,
        elastic=_plan_elastic(spec, grid),
        storage_uri=storage_uri,
        storage_credential=storage_credential,
        price_per_hour_usd=price,
        plugin=spec.plugin,
        install_setup=_find_install_setup(docker.command),
        teardown=docker.command.teardown if isinstance(docker.command, SetupAndRun) else None,
        python=spec.job_setting.python,
    )


def _plan_elastic(spec: JobSpec, grid: WorkerGrid) -> ElasticPlan | None:
    if spec.elastic is None:
        return None
    min_devices, per_node = spec.elastic.min_devices, grid.devices_per_node
    if min_devices % per_node:
        fewer, more = min_devices // per_node * per_node, (min_devices // per_node + 1) * per_node
        allowed = f"{fewer} or {more}" if fewer else str(more)
        raise PlanError(
            f"min_devices {min_devices} is not a whole number of nodes, which have {per_node} devices each. "
            f"Use {allowed}.",
            ("elastic", "min_devices"),
        )
    return ElasticPlan(min_num_nodes=min_devices // per_node)


def _find_install_setup(command: str | SetupAndRun) -> InstallSetup | None:
    if isinstance(command, str) or command.setup is None:
        return None
    return find_install_setup(command.setup, command.run)


def _one_bash_text(command: str | SetupAndRun) -> str:
    if isinstance(command, str):
        return command
    if command.setup is None:
        return command.run
    # Groups, so that either part may have several lines, end in a comment or hold a here-document, and what the setup
    # exports, activates or changes directory to holds for the run. Nobody's script is put under `set -e`.
    return f"{{\n{command.setup}\n}} && {{\n{command.run}\n}}"
