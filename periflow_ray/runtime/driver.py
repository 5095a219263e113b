"""The process that Ray Jobs runs for one job: starts the monitor and Ray Train, keeps ``state.json`` true.

    python -m periflow_ray.runtime.driver --storage URI --job-id N

Exit code 0 only if the job succeeded.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import ray
import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from periflow_ray.errors import NotFoundError, PeriflowRayError
from periflow_ray.plan import JobPlan
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.runtime.monitor import Monitor
from periflow_ray.runtime.node_agent import AgentTask, run_agent
from periflow_ray.runtime.sandbox import Sandbox
from periflow_ray.store import sealed_secrets
from periflow_ray.store.jobs import job_key
from periflow_ray.store.root import StorageRoot

# The controller's polling interval; at Ray's default of 2 s every ray.train.report takes that long.
POLL_INTERVAL_S = "0.1"
# A cluster that scales up needs minutes for new VMs; until then Ray Train waits and tries again.
GROUP_START_TIMEOUT_S = "900"
WAIT_NOTICE_S = 10.0


def main() -> None:
    """Run the job named on the command line to its end."""
    parser = argparse.ArgumentParser(prog="periflow_ray.runtime.driver")
    parser.add_argument("--storage", required=True)
    parser.add_argument("--job-id", type=int, required=True)
    options = parser.parse_args()
    root = StorageRoot(options.storage)
    try:
        plan_json = root.read_bytes(job_key(options.job_id, "plan.json")).decode()
    except NotFoundError as err:
        sys.exit(f"{err}. Can this machine see the storage root? A path must be on a shared file system.")
    with StateKeeper(root, options.job_id) as state:
        signal.signal(signal.SIGTERM, _stop_with(state))
        succeeded = _run(JobPlan.model_validate_json(plan_json), options.storage, options.job_id, state)
    sys.exit(0 if succeeded else 1)


def _run(plan: JobPlan, storage_uri: str, job_id: int, state: StateKeeper) -> bool:
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = POLL_INTERVAL_S
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = GROUP_START_TIMEOUT_S
    ray.init(address="auto", logging_level=logging.WARNING, log_to_driver=False)
    state.enter("allocating", f"asks for {_describe_resources(plan)}")
    monitor = ray.remote(num_cpus=0, max_concurrency=1000)(Monitor).remote(
        storage_uri, job_id, plan.num_nodes, plan.num_devices
    )
    threading.Thread(target=_follow_attempts, args=(monitor, plan, state), daemon=True).start()
    task = AgentTask(plan.model_dump_json(), job_id, storage_uri, monitor, _open_secrets(storage_uri, job_id))
    failures: list[Failure] = []
    error: Exception | None = None
    try:
        _build_trainer(plan, storage_uri, job_id, task).fit()
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as err:
        error = err
    try:
        failures = ray.get(monitor.attempt_failures.remote(), timeout=30)
        ray.get(monitor.close.remote(), timeout=30)
    except ray.exceptions.RayError as err:
        error = error or err
    if error is None:
        state.enter("success", None)
        return True
    state.enter("failed", _describe_error(failures, error))
    _remove_sandboxes(plan, storage_uri, job_id)
    return False


def _open_secrets(storage_uri: str, job_id: int) -> dict[str, str]:
    # Removed from the environment, so that no process inherits the key.
    key = os.environ.pop(sealed_secrets.KEY_VARIABLE, None)
    return {} if key is None else sealed_secrets.unseal(StorageRoot(storage_uri), job_id, key)


def _build_trainer(plan: JobPlan, storage_uri: str, job_id: int, task: AgentTask) -> DataParallelTrainer:
    # TorchTrainer's base class: the agents need neither torch nor a process group, and without them the user's
    # first line comes seconds earlier.
    root = StorageRoot(storage_uri)
    return DataParallelTrainer(
        _run_agent_loop,
        train_loop_config={"task": task},
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.num_nodes,
            use_gpu=plan.gpus_per_device > 0,
            resources_per_worker=_resources_per_node(plan),
            placement_strategy="PACK" if plan.vm.is_local else "STRICT_SPREAD",
        ),
        run_config=ray.train.RunConfig(
            # Checkpoints lie in jobs/<id>/checkpoints, so the run's directory has to be jobs/<id>.
            name=str(job_id),
            storage_path=root.path_of("jobs"),
            storage_filesystem=root.arrow_filesystem(),
            failure_config=ray.train.FailureConfig(max_failures=plan.max_failures),
        ),
    )


def _run_agent_loop(config: dict[str, Any]) -> None:
    run_agent(config["task"])


def _resources_per_node(plan: JobPlan) -> dict[str, float]:
    num_cpus = plan.cpus_per_device * plan.devices_per_node
    resources: dict[str, float] = {"CPU": float(int(num_cpus)) if num_cpus > 1 else num_cpus}
    if plan.gpus_per_device:
        resources["GPU"] = plan.gpus_per_device * plan.devices_per_node
    if plan.memory_bytes_per_device is not None:
        resources["memory"] = float(plan.memory_bytes_per_device * plan.devices_per_node)
    return resources


def _describe_resources(plan: JobPlan) -> str:
    parts = []
    for name, amount in _resources_per_node(plan).items():
        parts.append(f"{amount / 2**30:.1f} GiB memory" if name == "memory" else f"{amount:g} {name}")
    return f"{plan.num_nodes} x ({', '.join(parts)})"


def _follow_attempts(monitor: Any, plan: JobPlan, state: StateKeeper) -> None:
    """Turn the monitor's phases into the job's status, and say what a job waits for."""
    attempt = 0
    while True:
        ready, _ = ray.wait([started := monitor.wait_for_attempt.remote(attempt + 1)], timeout=WAIT_NOTICE_S)
        while not ready:
            available = ray.available_resources()
            free = ", ".join(f"{available.get(name, 0):g} {name}" for name in _resources_per_node(plan))
            state.note_waiting(f"waits for {_describe_resources(plan)}; the cluster has {free} free")
            ready, _ = ray.wait([started], timeout=WAIT_NOTICE_S)
        try:
            attempt = ray.get(started)
            state.enter("preparing", f"attempt {attempt} starts on {plan.num_nodes} node(s)", attempt)
            ray.get(monitor.wait_for_commands.remote(attempt))
            state.enter("running", f"attempt {attempt} runs the command", attempt)
        except ray.exceptions.RayError:  # The monitor is gone; the main thread deals with that.
            return


def _describe_error(failures: list[Failure], error: Exception) -> str:
    if failures:
        return failures[0].describe()
    causes = getattr(error, "worker_failures", None) or {}
    for rank in sorted(causes):
        cause = causes[rank]
        if isinstance(cause, ray.exceptions.OutOfMemoryError):
            return f"node {rank}: Ray ended the node agent because the machine's memory was full.\n{cause}"
        if isinstance(cause, PeriflowRayError):
            return str(cause)
        if isinstance(cause, ray.exceptions.RayActorError):
            return f"node {rank}: the node agent died: {_first_lines(str(cause))}"
        return f"node {rank}: {_first_lines(str(cause))}"
    return _first_lines(str(error))


def _first_lines(text: str, num_lines: int = 6) -> str:
    return "\n".join([line for line in text.splitlines() if line.strip()][:num_lines])


def _remove_sandboxes(plan: JobPlan, storage_uri: str, job_id: int) -> None:
    """Delete what failed or killed agents left on the nodes; a successful agent has cleaned up itself."""

    def remove() -> None:
        for node_rank in range(plan.num_nodes):
            Sandbox(storage_uri, job_id, node_rank).remove()

    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    tasks = [
        ray.remote(num_cpus=0)(remove).options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote()
        for node in ray.nodes()
        if node["Alive"]
    ]
    ray.wait(tasks, num_returns=len(tasks), timeout=30)


def _stop_with(state: StateKeeper) -> Any:
    def stop(signum: int, frame: FrameType | None) -> None:
        state.enter("stopped", "stopped on request")
        # The actors end with this process, and with the agents everything they started.
        os._exit(1)

    return stop


if __name__ == "__main__":
    main()
