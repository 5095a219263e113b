"""``job resume``: an ended job goes on under its number."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from periflow_ray.cli.complete import complete_cluster, complete_vm
from periflow_ray.cli.options import chosen_credential, job_argument, storage_option
from periflow_ray.cli.output import talk_console
from periflow_ray.cli.target import connect_target, count_gpus, driver_options
from periflow_ray.errors import ClusterError, UsageError

if TYPE_CHECKING:
    from periflow_ray.plan import JobPlan, VmType
    from periflow_ray.store.root import StorageRoot


@click.command()
@job_argument
@click.option("-v", "--vm", "vm_name", shell_complete=complete_vm, help="VM type to go on with.  [default: the job's]")
@click.option("--num-devices", type=int, help="Devices of the whole job.  [default: as many as before]")
@click.option("--local", "is_local", is_flag=True, help="Go on on this machine, on an embedded Ray cluster.")
@click.option(
    "--devices-per-node",
    type=click.IntRange(min=1),
    help="On this machine: devices of each stand-in node.  [default: as before, or as submit]",
)
@click.option(
    "--address",
    shell_complete=complete_cluster,
    help="Running Ray cluster: its name (periflow-ray cluster list) or http://HOST:8265.  [default: $RAY_ADDRESS, else "
    "the job's cluster]",
)
@click.option("--follow/--no-follow", default=True, show_default=True, help="Show the job's log until it ends.")
@storage_option
def resume(
    job_id: int,
    vm_name: str | None,
    num_devices: int | None,
    is_local: bool,
    devices_per_node: int | None,
    address: str | None,
    follow: bool,
    root: StorageRoot,
) -> None:
    """Go on with a job that was stopped or has failed, from its newest checkpoint, and follow it to its end.

    It may go on with another number of devices, on other VMs or on another cluster; its script, workspace and
    environment stay as they were. Secrets are taken from this shell again.

    The exit code is 0 only if the job succeeded.

    \b
    Examples:
      periflow-ray job resume 3
      periflow-ray job resume 3 --num-devices 2 --no-follow
      periflow-ray job resume 3 --address http://127.0.0.1:8265 --vm aws-16gb-v100-4g-us-east-2-spot
    """
    from periflow_ray.jobs import read_record
    from periflow_ray.plan import LOCAL_VM_NAME
    from periflow_ray.plan.trial import require_share
    from periflow_ray.submit.clusters import require_vms
    from periflow_ray.submit.resume import read_resumable_plan, resume_job
    from periflow_ray.sweeps.documents import has_sweep, read_sweep

    if is_local and (address or vm_name):
        raise UsageError("--local means this machine; it cannot be used with --address or --vm.")
    before = read_resumable_plan(root, job_id)
    runs_here = is_local or ((vm_name or before.vm.name) == LOCAL_VM_NAME and not address)
    if devices_per_node is not None and not runs_here:
        raise UsageError("--devices-per-node is for this machine; elsewhere the VM type decides.")
    plan = _move(before, runs_here, vm_name, num_devices, devices_per_node, root.uri)
    if has_sweep(root, job_id):
        require_share(plan, read_sweep(root, job_id).resources.device)
    secrets = _collect_secrets(job_id, plan)
    cluster_address = None if runs_here else address or os.environ.get("RAY_ADDRESS")
    if not runs_here and not cluster_address:
        cluster_address = None if before.vm.is_local else read_record(root, job_id).ray_address
        if cluster_address is None:
            raise ClusterError(
                f"VM '{plan.vm.name}' needs a Ray cluster, and none is named. Name it: --address http://127.0.0.1:8265 "
                "(or RAY_ADDRESS). To go on on this machine instead: --local"
            )
    if cluster_address is not None:
        require_vms(root, cluster_address, plan.vm_names)
    root.check_writable()
    cluster = connect_target(root, runs_here, cluster_address)
    # Before it goes on, and saves.
    start = _describe_start(root, job_id)
    record = resume_job(root, job_id, plan, cluster, secrets=secrets, **driver_options(runs_here))
    click.echo(start)
    talk = talk_console()
    nodes = f"{record.num_nodes} x {plan.devices_per_node} {record.accelerator}"
    talk.print(f"VM {record.vm}, nodes {nodes}.    Log: periflow-ray job log {job_id} -f", soft_wrap=True)
    if follow:
        from periflow_ray.cli.follow import follow_job, raise_unless_success

        raise_unless_success(root, job_id, follow_job(root, job_id, console=talk, num_past_lines=0))
        talk.print(f"Job ({job_id}) succeeded.")


def _describe_start(root: StorageRoot, job_id: int) -> str:
    from periflow_ray.store.checkpoints import latest_committed
    from periflow_ray.sweeps.documents import has_sweep

    if has_sweep(root, job_id):
        return f"Sweep ({job_id}) goes on."
    newest = latest_committed(root, job_id)
    where = "from its beginning: it has no checkpoint" if newest is None else f"at step {newest.step}"
    return f"Job ({job_id}) resumes {where}."


def _move(
    before: JobPlan,
    runs_here: bool,
    vm_name: str | None,
    num_devices: int | None,
    devices_per_node: int | None,
    storage_uri: str,
) -> JobPlan:
    from periflow_ray.plan.relocate import move_plan

    num_gpus = count_gpus()
    return move_plan(
        before,
        vm=_choose_vm(before, runs_here, vm_name, devices_per_node, num_gpus),
        num_devices=before.num_devices if num_devices is None else num_devices,
        storage_uri=storage_uri,
        storage_credential=chosen_credential(),
        # Another machine's are not known.
        num_local_cpus=os.cpu_count() if runs_here else None,
        num_local_gpus=num_gpus if runs_here else None,
    )


def _choose_vm(
    before: JobPlan, runs_here: bool, vm_name: str | None, devices_per_node: int | None, num_gpus: int
) -> VmType:
    from periflow_ray.plan import find_vm, local_vm

    if not runs_here:
        return before.vm if vm_name is None else find_vm(vm_name)
    if before.vm.is_local and devices_per_node is None and (before.vm.accelerator == "GPU") == (num_gpus > 0):
        return before.vm
    return local_vm(num_gpus=num_gpus, devices_per_node=devices_per_node)


def _collect_secrets(job_id: int, plan: JobPlan) -> dict[str, str]:
    from periflow_ray.submit.environment import collect_secrets

    missing = [name for name in plan.secret_names if name not in os.environ]
    if missing:
        raise UsageError(
            f"job {job_id} was submitted with --secret {' --secret '.join(plan.secret_names)}, and not set here: "
            f"{', '.join(missing)}. Set it first: export {missing[0]}=..."
        )
    return collect_secrets(plan.secret_names, os.environ)
