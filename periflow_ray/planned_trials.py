"""What a trainer or a template is as the trials of a search: their plan, and the workspace that their command finds."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import ray

from periflow_ray.errors import PlanError, UsageError
from periflow_ray.plan import JobPlan, VmType, build_plan, find_vm, load_catalogue, local_vm
from periflow_ray.runtime.function_jobs.call import takes_config
from periflow_ray.runtime.function_jobs.command import FUNCTION_DIR, FunctionCommand, write_function
from periflow_ray.runtime.plugin_credentials import require_plugin_credentials
from periflow_ray.runtime.ray_train.train_run import ensure_ray, has_other_machines, set_train_environment
from periflow_ray.runtime.ray_train.vm_choice import has_labels
from periflow_ray.settings import ChosenRoot
from periflow_ray.spec import JobSpec, load_template, parse_job
from periflow_ray.submit.modules import find_modules, scan_modules
from periflow_ray.submit.workspace import Workspace, scan_workspace, workspace_name
from periflow_ray.torch_trainer import TorchTrainer


def plan_trials(
    what: object, workspace_dir: str | os.PathLike[str] | None, chosen: ChosenRoot, scratch: Path
) -> tuple[JobPlan, Workspace | None]:
    """The plan of all trials, and what their command finds; ``scratch`` is there until it is stored."""
    set_train_environment()
    if isinstance(what, TorchTrainer):
        template, command = what.as_trials()
        if not takes_config(command.train_loop):
            raise UsageError("the trainer's function takes no config, in which it would find a trial's parameters.")
        spec = parse_job(template)
        directory: Path | None = scratch / FUNCTION_DIR
    elif isinstance(what, str | os.PathLike):
        spec = _read_template(Path(what))
        directory = None if workspace_dir is None else Path(workspace_dir)
    else:
        raise UsageError(f"what must be a periflow_ray.TorchTrainer or the path of a template, not {what!r}.")
    require_plugin_credentials(spec.plugin)
    ensure_ray()
    if isinstance(what, TorchTrainer):
        _lay_function(command, scratch / FUNCTION_DIR)
    workspace = None if directory is None else scan_workspace(directory)
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    if isinstance(what, TorchTrainer):
        num_gpus = spec.num_devices if what.wants_gpus() else 0
    vm, *fallback_vms = _find_vms(spec, num_gpus)
    try:
        plan = build_plan(
            spec,
            vm,
            fallback_vms=fallback_vms,
            storage_uri=chosen.root.uri,
            storage_credential=chosen.credential,
            workspace_dir_name=None if directory is None else workspace_name(directory),
            num_local_cpus=int(ray.cluster_resources().get("CPU", 1)),
        )
    except PlanError as err:
        raise UsageError(str(err)) from err
    return plan, workspace


def _lay_function(command: FunctionCommand, target: Path) -> None:
    """Make the workspace of a function: with the modules beside its script, where a machine does not have those."""
    if not has_other_machines():
        write_function(dataclasses.replace(command, modules_dir=str(find_modules())), target)
        return
    modules = scan_modules()
    for path in modules.files:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(modules.directory / path, target / path)
    write_function(command, target)


def _read_template(path: Path) -> JobSpec:
    try:
        text = path.read_bytes()
    except OSError as err:
        raise UsageError(f"cannot read the template '{path}': {err.strerror or err}") from err
    return load_template(text, source=str(path), known_vms=load_catalogue()).spec


def _find_vms(spec: JobSpec, num_gpus: int) -> list[VmType]:
    """The template's, where the cluster's nodes say of which type they are; else any nodes."""
    names = [name for name in spec.vm_names if name != "local"]
    if names and has_labels():
        return [find_vm(name) for name in names]
    # As few nodes as there is room for on each; where none has any yet, all on one.
    resource = "GPU" if num_gpus else "CPU"
    most = max((int(node["Resources"].get(resource, 0)) for node in ray.nodes() if node["Alive"]), default=0)
    fitting = [count for count in range(1, spec.num_devices + 1) if spec.num_devices % count == 0 and count <= most]
    per_node = max(fitting, default=spec.num_devices) if num_gpus else spec.num_devices
    return [local_vm(num_gpus=num_gpus, devices_per_node=per_node)]
