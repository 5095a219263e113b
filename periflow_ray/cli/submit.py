"""``periflow-ray submit`` (also ``job run``): a template becomes a job."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from periflow_ray.cli.duration import duration_callback
from periflow_ray.cli.file_tree import build_file_tree
from periflow_ray.cli.options import chosen_credential, storage_option, upload_bandwidth_option, yes_option
from periflow_ray.cli.output import build_fields, output_option, talk_console, tell_skipped, write_output
from periflow_ray.cli.target import Target, connect_target, count_gpus, driver_options
from periflow_ray.errors import ClusterError, PlanError, TemplateError, UsageError
from periflow_ray.jobs.user import user_name

if TYPE_CHECKING:
    from periflow_ray.plan import JobPlan, VmType
    from periflow_ray.spec import Template
    from periflow_ray.store.root import StorageRoot

# Of a cluster that a job brought up, which nobody may think of afterwards.
_AUTOSTOP_S = 1800


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-f",
    "--config-file",
    required=True,
    metavar="FILE",
    help="The template, usually pf-template.yml; - is standard input.",
)
@click.option("-d", "-w", "--workspace-dir", type=click.Path(path_type=Path), help="Directory with your script.")
@click.option("-n", "--name", help="Name of the job.")
@click.option(
    "-v",
    "--vm",
    "vm_names",
    multiple=True,
    help="VM type; given several times, the first one that the cloud has. List them: periflow-ray vm list",
)
@click.option("-e", "--experiment", help="Experiment to put the job in.")
@click.option("--num-devices", type=int, help="Devices of the whole job.")
@click.option("--local", "is_local", is_flag=True, help="Run on this machine, on an embedded Ray cluster (VM 'local').")
@click.option(
    "--devices-per-node",
    type=click.IntRange(min=1),
    help="With --local: devices of each stand-in node.  [default: 1 on CPU, all GPUs where there are some]",
)
@click.option(
    "--address",
    help="Running Ray cluster: its name (periflow-ray cluster list) or http://HOST:8265.  [default: $RAY_ADDRESS, "
    "else a cluster that has the VM type]",
)
@click.option(
    "--env", "env_assignments", multiple=True, metavar="K=V|K", help="Variable for the command; K: as set here."
)
@click.option("--env-file", "env_files", multiple=True, type=click.Path(path_type=Path), help="File with K=V lines.")
@click.option(
    "--secret", "secret_names", multiple=True, metavar="K", help="As --env K, but never shown or stored in the clear."
)
@upload_bandwidth_option
@click.option(
    "--fsync/--no-fsync",
    default=True,
    show_default=True,
    help="In a storage root that is a folder, commit checkpoints that outlive a loss of power.",
)
@click.option(
    "--wait",
    "wait_s",
    metavar="TIME",
    callback=duration_callback,
    help="Fail if the machines are not there after this time: 20m.  [default: wait forever]",
)
@click.option(
    "--up", "makes_cluster", is_flag=True, help="Make a cluster for the VM type if none is up; see cluster up."
)
@click.option("--dry-run", is_flag=True, help="Show the plan and do nothing.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Show the job's log until it ends.")
@yes_option
@output_option
@storage_option
def submit(
    root: StorageRoot,
    config_file: str,
    workspace_dir: Path | None,
    name: str | None,
    vm_names: tuple[str, ...],
    experiment: str | None,
    num_devices: int | None,
    is_local: bool,
    devices_per_node: int | None,
    address: str | None,
    env_assignments: tuple[str, ...],
    env_files: tuple[Path, ...],
    secret_names: tuple[str, ...],
    upload_bandwidth_bytes_per_s: int | None,
    fsync: bool,
    wait_s: float | None,
    makes_cluster: bool,
    dry_run: bool,
    follow: bool,
    is_confirmed: bool,
    output: str,
) -> None:
    """Run a pf-template.yml as a job, and follow it to its end.

    The exit code is 0 only if the job succeeded. The directory given with -d appears in the job as
    <mount_path>/<name of the directory>.

    \b
    Examples:
      periflow-ray submit --local -f pf-template.yml -d ./cifar
      periflow-ray submit --local --num-devices 2 -f pf-template.yml -d ./cifar
      periflow-ray submit --address http://127.0.0.1:8265 -f pf-template.yml -d ./cifar --secret WANDB_API_KEY
      periflow-ray submit --dry-run -f pf-template.yml
    """
    from periflow_ray.submit.environment import collect_env, collect_secrets
    from periflow_ray.submit.workspace import scan_workspace, workspace_name

    overrides = {"name": name, "vm": list(vm_names) or None, "experiment": experiment, "num_devices": num_devices}
    template = _read_template(config_file, overrides)
    target = _choose_target(template, is_local, devices_per_node, address)
    env = collect_env(env_assignments, env_files, os.environ)
    secrets = collect_secrets(secret_names, os.environ)
    plan = _build_plan(
        template,
        target,
        storage_uri=root.uri,
        storage_credential=chosen_credential(),
        upload_bandwidth_bytes_per_s=upload_bandwidth_bytes_per_s,
        fsync=fsync,
        wait_s=wait_s,
        workspace_dir_name=workspace_name(workspace_dir) if workspace_dir is not None else None,
        extra_env=env,
        secret_names=tuple(secrets),
    )
    if dry_run:
        _show_plan(plan, output)
        return
    cluster_address = _find_cluster(root, target, plan, may_be_made=makes_cluster)

    from periflow_ray.cli.submit_notes import describe_unused
    from periflow_ray.submit.jobs import submit_job

    workspace = scan_workspace(workspace_dir) if workspace_dir is not None else None
    # An unusable root is known now, and not after an hour of training; nothing has been created yet.
    root.check_writable()
    _check_inputs(root, plan)
    if cluster_address is None and not target.is_local:
        cluster_address = _make_cluster(root, plan, is_confirmed)
    cluster = connect_target(root, target.is_local, cluster_address)
    talk = talk_console()
    if workspace is not None:
        label = f"{plan.workspace_mount_path}/{workspace.name}"
        talk.print(build_file_tree(label, workspace.files))
        from periflow_ray.store.size_text import format_size

        talk.print(f"{len(workspace.files)} files, {format_size(workspace.size)}")
        for path, reason in workspace.skipped:
            tell_skipped(path, reason)
    for note in describe_unused(plan):
        talk.print(f"Note: {note}", soft_wrap=True)
    _ensure_experiment(root, plan, is_confirmed)
    record = submit_job(
        root,
        plan,
        cluster,
        workspace=workspace,
        secrets=secrets,
        created_by=user_name(),
        **driver_options(target.is_local),
    )
    click.echo(f"Job ({record.job_id}) started successfully.")
    talk.print(f"Log: periflow-ray job log {record.job_id} -f    State: periflow-ray job view {record.job_id}")
    if follow:
        from periflow_ray.cli.follow import follow_job, raise_unless_success

        raise_unless_success(record.job_id, follow_job(root, record.job_id, console=talk))
        talk.print(f"Job ({record.job_id}) succeeded.")


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
            num_local_cpus=os.cpu_count(),
            num_local_gpus=num_gpus,
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
        click.confirm(f"Experiment '{plan.experiment}' does not exist. Create it?", abort=True, err=True, default=True)
    create_experiment(root, plan.experiment)
    talk_console().print(f"Experiment '{plan.experiment}' was created.")


def _show_plan(plan: JobPlan, output: str) -> None:
    from periflow_ray.plan import describe_plan, plan_document

    write_output(output, plan_document(plan), lambda console: console.print(build_fields(dict(describe_plan(plan)))))
