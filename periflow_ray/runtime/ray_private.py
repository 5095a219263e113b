"""All that this project takes from Ray's private modules and attributes; no other file of the package does.

A release of Ray may change each of these, so ``tests/runtime/test_ray_private.py`` says of each what is relied on.
Ray is imported when a name is first used and not before: the notice watcher, which runs on a machine as long as the
machine does, has no use for Ray until the last minutes.

Long because no other file may have any of it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.autoscaler._private._azure.node_provider import AzureNodeProvider as AzureNodeProvider
    from ray.autoscaler.node_launch_exception import NodeLaunchException as NodeLaunchException
    from ray.train.v2._internal.callbacks import DatasetsCallback as DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback as PlacementGroupCleanerCallback,
    )
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback as WorkerGroupCallback
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy as DefaultFailurePolicy
    from ray.train.v2._internal.execution.failure_handling import FailureDecision as FailureDecision
    from ray.train.v2._internal.execution.failure_handling import FailurePolicy as FailurePolicy
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy as FixedScalingPolicy
    from ray.train.v2._internal.execution.scaling_policy import NoopDecision as NoopDecision
    from ray.train.v2._internal.execution.scaling_policy import ResizeDecision as ResizeDecision
    from ray.train.v2._internal.execution.scaling_policy import ScalingDecision as ScalingDecision
    from ray.train.v2._internal.execution.train_fn_utils import DistributedTrainFnUtils as DistributedTrainFnUtils
    from ray.train.v2._internal.execution.train_fn_utils import LocalTrainFnUtils as LocalTrainFnUtils
    from ray.train.v2.api.context import DistributedTrainContext as DistributedTrainContext
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer as DataParallelTrainer

_MODULE_BY_CLASS = {
    # The controller calls each callback's after_worker_group_start(worker_group) when the workers are up; in order, and
    # its backend's, which imports torch in them, is one of these. execute(function, *args) runs in all workers.
    "WorkerGroupCallback": "ray.train.v2._internal.execution.callback",
    # TorchTrainer's base class: starts a worker group and runs a function in it, without torch.
    "DataParallelTrainer": "ray.train.v2.api.data_parallel_trainer",
    # Callbacks that a trainer makes for every run: Ray Data's, and a detached actor that removes placement groups.
    "DatasetsCallback": "ray.train.v2._internal.callbacks",
    "PlacementGroupCleanerCallback": "ray.train.v2._internal.callbacks.placement_group_callback",
    # Of clusters on Azure: _create_node is what launches VMs, by the clients that the constructor has made.
    "AzureNodeProvider": "ray.autoscaler._private._azure.node_provider",
    # A provider's refusal with a code and a sentence, as Ray's autoscaler and launcher print it.
    "NodeLaunchException": "ray.autoscaler.node_launch_exception",
    # The controller asks a failure policy's make_decision(training_failed_error) after each failure: RETRY or RAISE.
    "FailurePolicy": "ray.train.v2._internal.execution.failure_handling",
    "DefaultFailurePolicy": "ray.train.v2._internal.execution.failure_handling",
    "FailureDecision": "ray.train.v2._internal.execution.failure_handling",
    # The controller asks a scaling policy, with and without a running group, for the number of workers, and before each
    # start of a group for the labels of the nodes to run on.
    "FixedScalingPolicy": "ray.train.v2._internal.execution.scaling_policy",
    "ScalingDecision": "ray.train.v2._internal.execution.scaling_policy",
    "NoopDecision": "ray.train.v2._internal.execution.scaling_policy",
    "ResizeDecision": "ray.train.v2._internal.execution.scaling_policy",
    # What ray.train's functions ask in a worker, and what get_context() gives there.
    "LocalTrainFnUtils": "ray.train.v2._internal.execution.train_fn_utils",
    "DistributedTrainFnUtils": "ray.train.v2._internal.execution.train_fn_utils",
    "DistributedTrainContext": "ray.train.v2.api.context",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_BY_CLASS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_BY_CLASS[name]), name)


class TrainerHooks:
    """Mixed into a Ray trainer: what to change in its run. Relies on three private methods of ``DataParallelTrainer``.

    ``left_out_callbacks`` are classes of Ray's default callbacks that the run does without; those of
    ``first_callbacks`` are called before the default ones.
    """

    left_out_callbacks: tuple[type, ...] = ()
    first_callbacks: tuple[type, ...] = ()

    def controller_options(self) -> dict[str, object]:
        """What Ray Train's controller gets in place of its defaults: ``failure_policy``, ``scaling_policy``."""
        return {}

    def take_controller(self, controller: Any) -> None:
        """Receive the controller's handle; only in the main thread. Ray would set a handler of SIGINT instead."""

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        return super()._initialize_and_run_controller(**{**options, **self.controller_options()})  # type: ignore[misc]

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        kept = [callback for callback in callbacks if not isinstance(callback, self.left_out_callbacks)]
        return [*(make() for make in self.first_callbacks), *kept]

    def _register_sigint_handler(self, controller: Any) -> None:
        self.take_controller(controller)


def end_worker(error: Exception, text: str) -> None:
    """Let a Ray Train worker count as failed with this error, though its function runs on.

    Any thread of the worker may call it. Relies on the queue of exceptions that the worker's poll reads.
    """
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2._internal.execution.context import get_train_context

    runner = get_train_context().execution_context.training_thread_runner
    runner.get_exception_queue().put(UserExceptionWithTraceback(error, text))


def actor_id_of(actor: Any) -> str:
    """The id in hex of an actor that a handle belongs to; Ray tells it publicly only to the actor itself."""
    return str(actor._actor_id.hex())


def answer_train_calls(calls: DistributedTrainFnUtils | LocalTrainFnUtils) -> None:
    """Let ``ray.train``'s functions (``report``, ``get_checkpoint``, ...) ask this in this worker from now on."""
    from ray.train.v2._internal.execution.train_fn_utils import set_train_fn_utils

    set_train_fn_utils(calls)


def set_preemption_info(info: Any) -> None:
    """Set what this worker brings to the next ``ray.train.get_preemption_info()``; that of rank 0 is the answer."""
    from ray.train.v2._internal.execution.context import get_train_context

    get_train_context().preemption_context.preemption_info = info


def find_cause(error: Exception) -> Exception:
    """What ended a worker: Ray Train wraps the death of a process into a failed health check."""
    cause: Exception = getattr(error, "health_check_failure", error)
    return cause


def is_preempted(error: Exception) -> bool:
    """Whether a worker's error says that Ray knew of the loss of its machine beforehand."""
    from ray.train.v2._internal.execution.worker_group.poll import _is_preempted_actor

    return bool(_is_preempted_actor(error))


def request_resources(policy: FixedScalingPolicy, *, is_new: bool = False) -> None:
    """Tell the cluster's autoscaler what the run needs; what is not new only if it was not told a moment ago."""
    if is_new:
        policy._send_resource_request()
    else:
        policy._maybe_send_resource_request()


class MachineRequest:
    """Asks the cluster's autoscaler for room beside what waits for it already; what others ask for is left alone.

    Args:
        requester: whose it is; one has one request at a time.
    """

    def __init__(self, requester: str) -> None:
        self._requester = requester

    def send(self, bundle: Mapping[str, float], labels: Mapping[str, str], count: int, expire_after_s: float) -> None:
        """Ask for this many of a bundle on nodes with these labels, in place of what was asked for before."""
        self._coordinator().request_resources.remote(
            requester_id=self._requester,
            resources=[dict(bundle)] * count,
            label_selectors=[dict(labels)] * count,
            expire_after_s=expire_after_s,
        )

    def cancel(self) -> None:
        """Ask for nothing any more."""
        self._coordinator().cancel_request.remote(requester_id=self._requester)

    @staticmethod
    def _coordinator() -> Any:
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
            get_or_create_autoscaling_coordinator,
        )

        return get_or_create_autoscaling_coordinator()


def resources_per_worker(scaling_config: Any) -> dict[str, float]:
    """What one worker of a run asks Ray for, with Ray's defaults where the configuration says nothing."""
    return dict(scaling_config._resources_per_worker_not_none)


@dataclass(frozen=True)
class PlacementGroupFacts:
    """Ray's record of a placement group that is not removed.

    ``is_pending``: it waits for its first machines. ``is_rescheduling``: it lost a machine and looks for another one.
    ``held`` is Ray's node id in hex -> resources.
    """

    group_id: bytes
    creator_actor_id_hex: str
    creator_job_id_hex: str
    is_pending: bool
    is_rescheduling: bool
    held: Mapping[str, Mapping[str, float]]


def read_placement_groups() -> list[PlacementGroupFacts]:
    """Every placement group of the cluster, with the actor that made it; the public table leaves that out."""
    import ray
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    packed = ray._private.state.state._connect_and_get_accessor().get_placement_group_table()
    groups = []
    for group in map(PlacementGroupTableData.FromString, packed):
        if group.state == PlacementGroupTableData.REMOVED:
            continue
        held: dict[str, dict[str, float]] = {}
        for bundle in group.bundles:
            on_node = held.setdefault(bundle.node_id.hex(), {})
            for name, amount in bundle.unit_resources.items():
                on_node[name] = on_node.get(name, 0.0) + amount
        groups.append(
            PlacementGroupFacts(
                group_id=group.placement_group_id,
                creator_actor_id_hex=group.creator_actor_id.hex(),
                creator_job_id_hex=group.creator_job_id.hex(),
                is_pending=group.state == PlacementGroupTableData.PENDING,
                is_rescheduling=group.state == PlacementGroupTableData.RESCHEDULING,
                held=held,
            )
        )
    return groups


def read_draining_nodes() -> dict[str, int]:
    """Nodes that Ray was told will go: id in hex -> deadline in Unix milliseconds, 0 where none was given."""
    import ray

    return dict(ray._private.state.state.get_draining_nodes() or {})


def read_free_resources() -> dict[str, dict[str, float]]:
    """What is free on each node: its id in hex -> resources."""
    import ray

    return dict(ray._private.state.state.available_resources_per_node())


def keep_to_loopback() -> None:
    """Let the next ``ray.init(address="local")`` take 127.0.0.1 for its node, as on macOS, and listen nowhere else."""
    import ray._private.ray_constants

    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False


def asks_for_token(address: str, timeout_s: float) -> bool:
    """Whether the cluster at HOST:PORT answers nobody who shows no token; False where nobody answers at all."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=timeout_s)
        except grpc.RpcError as err:
            return bool(err.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


@contextlib.contextmanager
def without_token_hint() -> Iterator[None]:
    """While a cluster starts, Ray does not tell how to let everybody in: it would say so at the start of each job."""
    logger = logging.getLogger("ray._private.authentication.authentication_token_setup")
    former_level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(former_level)


def enable_token_if_there() -> bool:
    """Let the next ``ray.init`` show the token that Ray finds; whether it finds one."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    return bool(maybe_enable_token_auth_if_token_available(warn_if_disabled=False))


def put_key(key: bytes, value: bytes, namespace: bytes) -> None:
    """Write a key of Ray's internal key-value store, which lives as long as the cluster's head; needs ``ray.init``."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(key, value, namespace=namespace)


def delete_key(key: bytes, namespace: bytes) -> None:
    """Delete a key of Ray's internal key-value store; needs ``ray.init``."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_del(key, namespace=namespace)


def find_gcs_address() -> str:
    """HOST:PORT of the cluster that ``$RAY_ADDRESS`` names, or that this machine has joined."""
    from ray._private import services

    return str(services.get_ray_address_from_environment("auto", None))


def open_gcs(address: str) -> Any:
    """A client of a cluster's control store, the GCS, without ``ray.init``.

    Its ``internal_kv_get`` and ``internal_kv_keys`` read what ``put_key`` writes. Raises one of several classes that
    have nothing in common if the GCS does not answer.
    """
    import ray

    return ray._raylet.GcsClient(address=address)


@dataclass(frozen=True)
class NodeRecord:
    """A node as the GCS knows it."""

    address: str
    is_alive: bool


def read_nodes(gcs: Any, timeout_s: float) -> dict[str, NodeRecord]:
    """Every node that the GCS knows, dead ones too, by its id in hex."""
    from ray.core.generated.gcs_pb2 import GcsNodeInfo

    nodes = gcs.get_all_node_info(timeout=timeout_s).items()
    return {
        node_id.hex(): NodeRecord(node.node_manager_address, node.state == GcsNodeInfo.ALIVE) for node_id, node in nodes
    }


@dataclass(frozen=True)
class LaunchFacts:
    """Machines that the autoscaler has asked its provider for, by node type; times in Unix seconds.

    Args:
        requested: how many of them the provider has not given yet, and since when.
        installing: how many are there, but do not run Ray yet.
        refused_unix_s: when the provider last refused one.
    """

    requested: Mapping[str, tuple[int, float]]
    installing: Mapping[str, int]
    refused_unix_s: Mapping[str, float]


def read_launches(gcs_address: str, timeout_s: int) -> LaunchFacts:
    """What the autoscaler of a cluster waits for; nothing where there is none. Relies on version 2 of it."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(gcs_address, timeout_s)
    requested: dict[str, tuple[int, float]] = {}
    for launch in status.pending_launches:
        count, since = requested.get(launch.ray_node_type_name, (0, float(launch.request_ts_s)))
        requested[launch.ray_node_type_name] = (count + launch.count, min(since, float(launch.request_ts_s)))
    installing: dict[str, int] = {}
    for node in status.pending_nodes:
        installing[node.ray_node_type_name] = installing.get(node.ray_node_type_name, 0) + 1
    refused: dict[str, float] = {}
    for launch in status.failed_launches:
        name = launch.ray_node_type_name
        refused[name] = max(refused.get(name, 0.0), float(launch.failed_ts_s or 0))
    return LaunchFacts(requested, installing, refused)


def drain_node(gcs: Any, node_id_hex: str, reason: str, deadline_unix_ms: int, timeout_s: float) -> tuple[bool, str]:
    """Tell Ray that a node is preempted; returns whether Ray accepts that, and why not.

    The same call as that of ``ray drain-node``, without the seconds that its start takes.
    """
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    preemption = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    is_accepted, refusal = gcs.drain_node(node_id_hex, preemption, reason, deadline_unix_ms, timeout=timeout_s)
    return bool(is_accepted), str(refusal)


def read_azure_vm_template() -> dict[str, Any]:
    """The template of Azure's resource manager from which Ray's node provider makes VMs."""
    from ray.autoscaler._private import _azure

    (folder,) = _azure.__path__
    template: dict[str, Any] = json.loads((Path(folder) / "azure-vm-template.json").read_text("utf-8"))
    return template


def read_node_start_wait_s() -> int:
    """How long Ray's node providers wait for a machine that they have asked for."""
    from ray.autoscaler._private.constants import AUTOSCALER_NODE_START_WAIT_S

    return int(AUTOSCALER_NODE_START_WAIT_S)


def run_launcher(look_interval_s: float) -> None:
    """Be ``ray up`` with this process's arguments.

    Args:
        look_interval_s: between two looks whether the provider has the head, and whether it takes SSH.
    """
    from ray.autoscaler._private import commands, updater
    from ray.scripts.scripts import up

    commands.POLL_INTERVAL = look_interval_s
    updater.READY_CHECK_INTERVAL = look_interval_s
    up()


@dataclass(frozen=True)
class TrialResults:
    """What a ``ResultGrid`` says of a trial.

    Args:
        reports: each with all metrics, in their order.
    """

    trial_id: str
    job_id: int
    config: Mapping[str, Any]
    reports: Sequence[Mapping[str, Any]]
    path: str
    error: Exception | None
    has_ended: bool
    checkpoint: Any


def make_result_grid(trials: Sequence[TrialResults], path: str, filesystem: Any, metric: str, mode: str) -> Any:
    """Ray Tune's ``ResultGrid`` of trials that Tune's own files do not know."""
    import pandas
    from ray.tune import Result, ResultGrid
    from ray.tune.analysis import ExperimentAnalysis
    from ray.tune.experiment import Trial

    facts = {trial.trial_id: trial for trial in trials}

    class Analysis(ExperimentAnalysis):  # type: ignore[misc]
        def __init__(self) -> None:
            self.default_metric, self.default_mode = metric, mode
            self._fs, self._experiment_fs_path = filesystem, path
            self.trials = [self._make_trial(trial) for trial in trials]
            self._trial_dataframes = {trial.trial_id: pandas.DataFrame(trial.reports) for trial in trials}
            self._configs = self.get_all_configs()

        def _make_trial(self, facts: TrialResults) -> Any:
            trial = Trial("trial", trial_id=facts.trial_id, config=dict(facts.config), stub=True)
            for report in facts.reports:
                trial.update_last_result(dict(report))
            status = Trial.ERROR if facts.error else Trial.TERMINATED if facts.has_ended else Trial.PENDING
            trial.set_status(status)
            return trial

    class Grid(ResultGrid):  # type: ignore[misc]
        def _trial_to_result(self, trial: Any) -> Any:
            known = facts[trial.trial_id]
            last = {"config": dict(known.config), "trial_id": known.trial_id, "job_id": known.job_id}
            last |= (known.reports or [{}])[-1]
            checkpoints = [] if known.checkpoint is None else [(known.checkpoint, last)]
            return Result(
                metrics=last,
                checkpoint=known.checkpoint,
                error=known.error,
                path=known.path,
                metrics_dataframe=self._experiment_analysis.trial_dataframes[known.trial_id],
                best_checkpoints=checkpoints,
                _storage_filesystem=filesystem,
            )

    return Grid(Analysis())
