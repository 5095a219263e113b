"""What ``submit`` and ``sweep run`` have in common: the way from their options to a job that is submitted."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from periflow_ray.cli.file_tree import build_file_tree
from periflow_ray.cli.options import chosen_credential, confirm
from periflow_ray.cli.output import talk_console, tell_ignored, tell_skipped
from periflow_ray.cli.submission_options import SubmissionOptions
from periflow_ray.cli.target import Target, connect_target, count_gpus, driver_options
from periflow_ray.errors import ClusterError, PlanError, TemplateError, UsageError
from periflow_ray.jobs.user import user_name

if TYPE_CHECKING:
    from periflow_ray.jobs import JobRecord
    from periflow_ray.plan import JobPlan, VmType
    from periflow_ray.spec import SweepSpec, Template
    from periflow_ray.spec.requirements import Requirements
    from periflow_ray.store.root import StorageRoot
    from periflow_ray.submit.workspace import Workspace

# Of a cluster that a job brought up, which nobody may think of afterwards.
_AUTOSTOP_S = 1800


class Submission:
    """A template with the options of the command line: what would run, and where.

    Raises:
        UsageError, TemplateError: something of it cannot be.
    """

    def __init__(self, root: StorageRoot, given: SubmissionOptions) -> None:
        from periflow_ray.submit.environment import collect_env, collect_secrets
        from periflow_ray.submit.workspace import workspace_name

        self._root = root
        self._given = given
        self.requirements: Requirements | None = None
        """What the template's requirements file asks for, once ``check`` has read it."""
        overrides = {
            "name": given.name,
            "vm": list(given.vm_names) or None,
            "experiment": given.experiment,
            "num_devices": given.num_devices,
        }
        self.template = _read_template(given.config_file, overrides)
        self._target = _choose_target(self.template, given.is_local, given.devices_per_node, given.address)
        env = collect_env(given.env_assignments, given.env_files, os.environ)
        self._secrets = collect_secrets(given.secret_names, os.environ)
        self.plan = _build_plan(
            self.template,
            self._target,
            storage_uri=root.uri,
            storage_credential=chosen_credential(),
            upload_bandwidth_bytes_per_s=given.upload_bandwidth_bytes_per_s,
            fsync=given.fsync,
            wait_s=given.wait_s,
            use_image=given.use_image,
            workspace_dir_name=workspace_name(given.workspace_dir) if given.workspace_dir is not None else None,
            extra_env=env,
            secret_names=tuple(self._secrets),
        )

    def check(self) -> Workspace | None:
        """Look at what the job will need: the workspace, which is returned, its dataset and its checkpoint.

        Raises:
            TemplateError: the workspace does not have the requirements file, or it cannot be read.
            WorkspaceError: the directory cannot be packaged.
            NotFoundError, StorageError: the storage root has no such dataset or checkpoint, or does not answer.
        """
        from periflow_ray.submit.requirements import check_requirements
        from periflow_ray.submit.workspace import scan_workspace

        directory = self._given.workspace_dir
        workspace = scan_workspace(directory) if directory is not None else None
        if self.plan.python is not None:
            try:
                self.requirements = check_requirements(self.plan.python, workspace)
            except PlanError as err:
                raise TemplateError(f"{self.template.locate(err.key_path)}: {err}") from err
        _check_inputs(self._root, self.plan)
        return workspace

    def start(self, *, is_confirmed: bool, sweep: SweepSpec | None = None) -> JobRecord:
        """Submit it, to a cluster that is made first if need be, with a word about each thing that is done.

        Args:
            sweep: what to search for, where the job is a sweep.
        Raises:
            ClusterError: there is no cluster for it, or it refused.
        """
        from periflow_ray.cli.submit_notes import describe_unused
        from periflow_ray.store.size_text import format_size
        from periflow_ray.submit.jobs import submit_job

        root, plan, target = self._root, self.plan, self._target
        cluster_address = _find_cluster(root, target, plan, may_be_made=self._given.makes_cluster)
        workspace = self.check()
        # An unusable root is known now, and not after an hour of training; nothing has been created yet.
        root.check_writable()
        if cluster_address is None and not target.is_local:
            cluster_address = _make_cluster(root, plan, is_confirmed)
        cluster = connect_target(root, target.is_local, cluster_address)
        talk = talk_console()
        if workspace is not None:
            label = f"{plan.workspace_mount_path}/{workspace.name}"
            talk.print(build_file_tree(label, workspace.files))
            talk.print(f"{len(workspace.files)} files, {format_size(workspace.size)}")
            tell_ignored(workspace.ignored, workspace.git_trouble)
            for path, reason in workspace.skipped:
                tell_skipped(path, reason)
            if any(os.path.islink(path) for path, _ in workspace.skipped):
                talk.print(
                    "To have what a link leads to: copy it into the folder, or make it a dataset.", soft_wrap=True
                )
        for note in describe_unused(plan):
            talk.print(f"Note: {note}", soft_wrap=True)
        _ensure_experiment(root, plan, is_confirmed)
        return submit_job(
            root,
            plan,
            cluster,
            workspace=workspace,
            secrets=self._secrets,
            created_by=user_name(),
            sweep=sweep,
            **driver_options(target.is_local),
        )


def _read_template(config_file: str, overrides: dict[str, Any]) -> Template:
    from periflow_ray.plan import load_catalogue
    from periflow_ray.spec import load_template

    source = "<stdin>" if config_file == "-" else config_file
    try:
        text = sys.stdin.buffer.read() if config_file == "-" else Path(config_file).read_bytes()
    except OSError as err:
        raise UsageError(f"cannot read the template '{config_file}': {err.strerror or err}") from err
    return load_template(text, source=source, overrides=overrides, known_vms=load_catalogue())


def _choose_target(template: Template, is_local: bool, devices_per_node: int | None, address: str | None) -> Target:
    from periflow_ray.plan import LOCAL_VM_NAME

    if is_local and address:
        raise UsageError("--local and --address exclude each other: one names this machine, the other a cluster.")
    is_local = is_local or (LOCAL_VM_NAME in template.spec.vm and not address)
    if devices_per_node is not None and not is_local:
        raise UsageError("--devices-per-node is for --local; elsewhere the VM type decides.")
    return Target(is_local, devices_per_node, None if is_local else address or os.environ.get("RAY_ADDRESS"))


def _build_plan(template: Template, target: Target, **options: Any) -> JobPlan:
    from periflow_ray.plan import build_plan

    num_gpus = count_gpus()
    try:
        vm, *fallback_vms = _find_vms(template, target, num_gpus)
        return build_plan(
            template.spec,
            vm,
            fallback_vms=fallback_vms,
            # Another machine's are not known.
            num_local_cpus=os.cpu_count() if target.is_local else None,
            num_local_gpus=num_gpus if target.is_local else None,
            **options,
        )
    except PlanError as err:
        raise TemplateError(f"{template.locate(err.key_path)}: {err}") from err


def _find_vms(template: Template, target: Target, num_gpus: int) -> list[VmType]:
    from periflow_ray.plan import find_vm, local_vm

    if target.is_local:
        return [local_vm(num_gpus=num_gpus, devices_per_node=target.devices_per_node)]
    return [find_vm(name) for name in template.spec.vm_names]


def _find_cluster(root: StorageRoot, target: Target, plan: JobPlan, *, may_be_made: bool) -> str | None:
    """The address or the name of the job's cluster; None for this machine, and for one that is to be made."""
    from periflow_ray.submit.clusters import find_running_cluster, require_vms

    if target.address:
        require_vms(root, target.address, plan.vm_names)
    if target.is_local or target.address:
        return target.address
    running = find_running_cluster(root, plan.vm_names)
    if running is not None:
        talk_console().print(f"Runs on cluster '{running.name}' ({running.region}).")
        return running.name
    if may_be_made:
        return None
    where = ", with a storage root that its nodes can reach (--storage s3://...)" if root.is_local else ""
    raise ClusterError(
        f"VM '{plan.vm.name}' needs a Ray cluster, and none of this storage root has it. Make one: --up, or "
        f"periflow-ray cluster up --vm {' --vm '.join(plan.vm_names)}{where}. Or name yours: --address "
        "http://127.0.0.1:8265. To run on this machine instead: --local --num-devices 2"
    )


def _make_cluster(root: StorageRoot, plan: JobPlan, is_confirmed: bool) -> str:
    from periflow_ray.cli.cluster_making import choose_options, make_cluster
    from periflow_ray.cluster.config.spec import build_spec, suggest_name

    spec = build_spec(suggest_name(plan.vm), [plan.vm, *plan.fallback_vms], max_num_nodes=plan.num_nodes)
    options = choose_options(root, spec, autostop_s=_AUTOSTOP_S, max_cost_usd=None)
    talk_console().print(
        f"Makes cluster '{spec.name}', which ends when no job has run for {_AUTOSTOP_S // 60} minutes."
    )
    make_cluster(root, spec, options, is_confirmed=is_confirmed)
    return spec.name


def _check_inputs(root: StorageRoot, plan: JobPlan) -> None:
    if plan.data is not None and not plan.data.is_huggingface:
        from periflow_ray.store.datasets import read_dataset

        read_dataset(root, plan.data.name)
    if plan.checkpoint_input is not None:
        from periflow_ray.store.checkpoints import find_checkpoint

        find_checkpoint(root, plan.checkpoint_input.id)


def _ensure_experiment(root: StorageRoot, plan: JobPlan, is_confirmed: bool) -> None:
    from periflow_ray.jobs.experiments import create_experiment, has_experiment

    if plan.experiment is None or has_experiment(root, plan.experiment):
        return
    if not is_confirmed and sys.stdin.isatty():
        confirm(f"Experiment '{plan.experiment}' does not exist. Create it?", default=True)
    create_experiment(root, plan.experiment)
    talk_console().print(f"Experiment '{plan.experiment}' was created.")
