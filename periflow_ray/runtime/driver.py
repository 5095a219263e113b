"""The process that Ray Jobs runs for one command job: starts the monitor and Ray Train, keeps the job's state true.

    python -m periflow_ray.runtime.driver --storage URI [--storage-credential NAME] --job-id N [--driver-id ID]
                                         [--again]

Exit code 0 only if the job succeeded.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.train

from periflow_ray.credentials.cloud_environment import read_shell_environment
from periflow_ray.credentials.credential_types import secret_values
from periflow_ray.errors import DocumentError, NotFoundError, StorageError
from periflow_ray.jobs import JobRecord, key_handover, read_claim, read_record, sealed_secrets
from periflow_ray.jobs.succession import Ownership, leave_to_successor
from periflow_ray.plan import JobPlan
from periflow_ray.runtime.command_jobs.node import NodeTask, run_node
from periflow_ray.runtime.driver_keeper import AGAIN_OPTION, KeeperLine
from periflow_ray.runtime.environments.login import read_login
from periflow_ray.runtime.job_driver import JobSetup, run_job
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.runtime.monitor.client import RayMonitor
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.runtime.monitor.sinks import plan_sinks, sink_variables
from periflow_ray.runtime.notifications import make_notifier
from periflow_ray.runtime.ray_private import DataParallelTrainer, DatasetsCallback
from periflow_ray.runtime.ray_train.group_policy import MonitoredTrainer
from periflow_ray.runtime.ray_train.train_run import (
    WithoutPlacementGroupCleaner,
    set_train_environment,
    train_run_config,
)
from periflow_ray.store.documents import read_document
from periflow_ray.store.keys import job_key
from periflow_ray.store.patience import STORAGE_PATIENCE_S, Patience
from periflow_ray.store.root import StorageRoot
from periflow_ray.sweeps.documents import has_sweep


def main() -> None:
    """Run the job named on the command line to its end."""
    parser = argparse.ArgumentParser(prog="periflow_ray.runtime.driver")
    parser.add_argument("--storage", required=True)
    parser.add_argument("--storage-credential", metavar="NAME")
    parser.add_argument("--job-id", type=int, required=True)
    parser.add_argument("--driver-id")
    parser.add_argument(AGAIN_OPTION, action="store_true")
    options = parser.parse_args()
    # A first driver that does not reach the storage is set up wrongly; a later one only has to wait.
    patience = Patience(_say, timeout_s=STORAGE_PATIENCE_S if options.again else 0.0)
    try:
        shell_variables = read_shell_environment()
        root = StorageRoot(options.storage, options.storage_credential)
        plan = patience.insist(lambda: _read_plan(root, options.job_id, options.again))
        if not plan.fsync:
            root = root.without_fsync()
        if patience.insist(Ownership(root, options.job_id, options.driver_id).is_lost):
            leave_to_successor(options.job_id)
        keeper = patience.insist(lambda: StateKeeper(root, options.job_id, driver_id=options.driver_id))
    except NotFoundError as err:
        sys.exit(f"{err}. Can this machine see the storage root? A path must be on a shared file system.")
    except StorageError as err:
        sys.exit(str(err))
    with keeper as state:
        # From here on the job waits in any case: the storage was there a moment ago.
        patience = Patience(state.note)
        record = patience.insist(lambda: _read_record(root, options.job_id, plan, state.note))
        claim = patience.insist(lambda: read_claim(root, options.job_id))
        secrets_key, secrets = _open_secrets(root, options.job_id, plan, patience)
        inputs = _Inputs(plan, record, claim, secrets_key, secrets, shell_variables)
        if patience.insist(lambda: has_sweep(root, options.job_id)):
            # Ray Tune is imported where it is needed.
            from periflow_ray.runtime.sweeps.driver import run_sweep
            from periflow_ray.runtime.sweeps.trial_job import SweepTask

            state.hide((*secrets.values(), secrets_key, *secret_values({**shell_variables, **plan.env})))
            task = SweepTask(
                root=root,
                sweep_id=options.job_id,
                sweep_plan=plan,
                secrets=secrets,
                shell_variables=shell_variables,
                secrets_key=secrets_key,
                num_nodes=plan.num_nodes,
                node_resources=plan.resources_per_node,
            )
            succeeded = run_sweep(root, state, plan, record, task)
        else:
            succeeded = _run(inputs, root, state, options.driver_id)
    sys.exit(0 if succeeded else 1)


@dataclass(frozen=True)
class _Inputs:
    """What the driver read of its job; ``secrets_key`` opens the sealed ``secrets``."""

    plan: JobPlan
    record: JobRecord
    claim: str
    secrets_key: str = field(repr=False)
    secrets: Mapping[str, str] = field(repr=False)
    shell_variables: Mapping[str, str] = field(repr=False)


def _run(inputs: _Inputs, root: StorageRoot, state: StateKeeper, driver_id: str | None) -> bool:
    plan, record = inputs.plan, inputs.record
    job_id = record.job_id
    state.hide((*inputs.secrets.values(), inputs.secrets_key, *secret_values({**inputs.shell_variables, **plan.env})))
    set_train_environment(is_elastic=plan.min_num_nodes < plan.num_nodes)
    ray.init(address="auto", logging_level=logging.WARNING, log_to_driver=False)
    resources = plan.resources_per_node
    sinks = plan_sinks(plan.plugin, record, plan.env, state.note)
    variables = sink_variables(sinks, given={*plan.env, *plan.secret_names})
    plan = plan.model_copy(update={"env": {**variables.settings, **plan.env}})
    secrets = {**variables.secrets, **inputs.secrets}

    login = read_login(plan, state.note)

    def make_trainer(monitor: RayMonitor) -> MonitoredTrainer:
        task = NodeTask(
            plan.model_dump_json(),
            job_id,
            inputs.claim,
            root,
            monitor,
            secrets,
            inputs.shell_variables,
            inputs.secrets_key,
            login,
        )
        # The monitor decides on restarts; Ray's own counters stay out of it.
        return _NodeTrainer(
            _run_node_loop,
            train_loop_config={"task": task},
            scaling_config=ray.train.ScalingConfig(
                num_workers=plan.num_nodes,
                use_gpu=plan.gpus_per_device > 0,
                resources_per_worker=resources,
                placement_strategy="PACK" if plan.vm.is_local else "STRICT_SPREAD",
            ),
            run_config=train_run_config(root, job_id),
        )

    setup = JobSetup(
        num_members=plan.num_nodes,
        min_num_members=plan.min_num_nodes,
        resources_per_member=resources,
        rules=JobRules(
            devices_per_member=plan.devices_per_node,
            max_failures=plan.max_failures,
            hang_timeout_s=plan.hang_timeout_s,
            retention=Retention(plan.keep_last, plan.keep_best),
            sinks=sinks,
            driver_id=driver_id,
        ),
        vm_names=() if plan.vm.is_local else plan.vm_names,
        wait_s=plan.wait_s,
        num_sandboxes=plan.num_nodes,
        notifier=make_notifier(plan.plugin, record, state.note),
    )
    return run_job(root, job_id, state, setup, make_trainer).status == "success"


class _NodeTrainer(MonitoredTrainer, WithoutPlacementGroupCleaner, DataParallelTrainer):  # type: ignore[misc]
    """TorchTrainer's base class, because the nodes' members need neither torch nor a process group.

    Without them the user's first line comes seconds earlier. Nor do they read Ray Data datasets.
    """

    left_out_callbacks = (*WithoutPlacementGroupCleaner.left_out_callbacks, DatasetsCallback)


def _run_node_loop(config: dict[str, Any]) -> None:
    run_node(config["task"])


def _read_record(root: StorageRoot, job_id: int, plan: JobPlan, note: Callable[[str], None]) -> JobRecord:
    """The job's record, or what its plan knows of one that is damaged."""
    try:
        return read_record(root, job_id)
    except DocumentError as err:
        # The job itself runs by its plan; a run that it has at Weights & Biases is not found again.
        note(f"the job goes on without its record: {err}")
        return JobRecord(
            job_id=job_id,
            **plan.record_fields,
            created_by="-",
            created_unix_s=0.0,
        )


def _read_plan(root: StorageRoot, job_id: int, is_again: bool) -> JobPlan:
    try:
        return read_document(root, job_key(job_id, "plan.json"), JobPlan)
    except NotFoundError as err:
        if not is_again:
            raise
        # An earlier driver has read it: the file system of the root is not mounted any more.
        raise StorageError(str(err)) from err


def _open_secrets(root: StorageRoot, job_id: int, plan: JobPlan, patience: Patience) -> tuple[str, dict[str, str]]:
    # Removed from the environment, so that no process inherits the key.
    key = os.environ.pop(sealed_secrets.KEY_VARIABLE, "")
    with KeeperLine.open() as keeper:
        key = key or keeper.read_key()
        if not key and plan.secret_names:
            key = key_handover.ask_for_key(root, job_id, keep=keeper.keep_key)
    return key, patience.insist(lambda: sealed_secrets.unseal(root, job_id, key)) if key else {}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
