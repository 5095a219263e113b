"""Asks the monitor, rather than Ray Train's own counters, whether and how a broken worker group is replaced."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import ray
import ray.train

from periflow_ray.errors import PeriflowRayError
from periflow_ray.runtime.monitor.client import MonitorClient
from periflow_ray.runtime.monitor.contract import MEMORY_WAS_FULL, GroupLoss
from periflow_ray.runtime.ray_private import (
    DefaultFailurePolicy,
    FailureDecision,
    FailurePolicy,
    TrainerHooks,
    actor_id_of,
    end_worker,
    find_cause,
    is_preempted,
)
from periflow_ray.runtime.ray_train.group_size import ElasticPolicy, FixedPolicy
from periflow_ray.runtime.ray_train.own_groups import release_groups
from periflow_ray.runtime.ray_train.vm_choice import VmChoice
from periflow_ray.runtime.ray_train.worker_environment import UserEnvironmentCallback


class LeaveGroupError(PeriflowRayError):
    """A worker raises it to leave its group, which Ray Train then ends; the monitor knows whether another follows."""


def leave_group(reason: str) -> None:
    """Tell Ray Train that this worker's part is over, though its function runs on; Ray then ends the whole group.

    From a thread beside the function's: one that is stuck cannot say so itself.
    """
    end_worker(LeaveGroupError(reason), reason)


class MonitorPolicy(FailurePolicy):  # type: ignore[misc]
    """Runs in Ray Train's controller."""

    def __init__(self, failure_config: ray.train.FailureConfig, monitor: MonitorClient) -> None:
        super().__init__(failure_config)
        self._monitor = monitor
        self._num_losses = 0
        self._default = DefaultFailurePolicy(failure_config)

    def make_decision(self, training_failed_error: ray.train.TrainingFailedError) -> FailureDecision:
        """Retry what Ray Train itself could not do as Ray does; for everything else the monitor knows more."""
        if not isinstance(training_failed_error, ray.train.WorkerGroupError):
            return self._default.make_decision(training_failed_error)
        lost, any_preempted = {}, False
        for rank, error in training_failed_error.worker_failures.items():
            cause = find_cause(error)
            any_preempted = any_preempted or is_preempted(error)
            if isinstance(cause, ray.exceptions.OutOfMemoryError):
                lost[rank] = MEMORY_WAS_FULL
            elif isinstance(cause, ray.exceptions.RayActorError):
                lost[rank] = str(cause)
        self._num_losses += 1
        may_replace = self._monitor.may_replace_group(GroupLoss(self._num_losses, lost, any_preempted))
        return FailureDecision.RETRY if may_replace else FailureDecision.RAISE


class MonitoredTrainer(TrainerHooks):
    """Mixed into a Ray trainer: ``monitor`` decides on new worker groups, which may be as small as ``min_num_workers``.

    None for that is a fixed number of workers. ``vm_names`` are the VM types whose nodes may have them, the first
    choice first; none for any node.
    """

    monitor: MonitorClient
    min_num_workers: int | None = None
    vm_names: Sequence[str] = ()
    first_callbacks: tuple[type, ...] = (UserEnvironmentCallback,)
    _controller: Any = None

    def fit(self) -> ray.train.Result:
        """Run the training; see Ray's trainers."""
        return super().fit()  # type: ignore[misc]

    def end_now(self) -> None:
        """End the worker group, or the wait for one: ``fit`` raises. Known only if it runs in the main thread."""
        if self._controller is not None:
            ray.kill(self._controller)

    def release(self) -> None:
        """Give back the resources of a controller that was killed or has died, so that another one finds room."""
        if self._controller is not None:
            with contextlib.suppress(ray.exceptions.RayError, RuntimeError):  # The cluster itself is gone.
                release_groups(actor_id_of(self._controller))

    def controller_options(self) -> dict[str, object]:
        """Policies that ask the monitor."""
        failure_config = self.run_config.failure_config  # type: ignore[attr-defined]
        options: dict[str, object] = {"failure_policy": MonitorPolicy(failure_config, self.monitor)}
        scaling_config = self.scaling_config  # type: ignore[attr-defined]
        vm_choice = VmChoice(self.vm_names, self.monitor)
        if self.min_num_workers is not None and self.min_num_workers < scaling_config.num_workers:
            options["scaling_policy"] = ElasticPolicy(scaling_config, self.min_num_workers, vm_choice, self.monitor)
        else:
            options["scaling_policy"] = FixedPolicy(scaling_config, vm_choice)
        return options

    def take_controller(self, controller: Any) -> None:
        """Keep it for ``end_now``; Ray's own handler of SIGINT would abort the run without a save."""
        self._controller = controller
