"""The members of a trial on several nodes: an actor on each bundle of the trial's placement group."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from periflow_ray.errors import JobFailedError
from periflow_ray.runtime.command_jobs.node import NodeTask, find_free_port, run_member
from periflow_ray.runtime.member.lifeline import Lifeline
from periflow_ray.runtime.monitor.client import MonitorClient, RayMonitor
from periflow_ray.runtime.monitor.contract import GroupLoss, MemberFacts
from periflow_ray.runtime.ray_private import is_preempted
from periflow_ray.runtime.ray_train.group_policy import LeaveGroupError

_LOOK_INTERVAL_S = 1.0


class Gang:
    """Keeps the actors from one trial to the next; a node's loss ends all of them, and others take their place.

    Args:
        num_nodes: members of each trial.
        resources: what each member asks Ray for.
    """

    def __init__(self, num_nodes: int, resources: Mapping[str, float]) -> None:
        self.num_nodes = num_nodes
        self._resources = dict(resources)
        self._actors: list[Any] = []

    def open(self) -> list[Any]:
        """The actors, by node rank."""
        if not self._actors:
            self._actors = [self._start(rank) for rank in range(self.num_nodes)]
        return list(self._actors)

    def close(self) -> None:
        """End them; the keepers of their commands end those."""
        for actor in self._actors:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)
        self._actors = []

    def _start(self, rank: int) -> Any:
        group = ray.util.get_current_placement_group()
        resources = dict(self._resources)
        return (
            ray.remote(_Member)
            .options(
                num_cpus=resources.pop("CPU", 0),
                num_gpus=resources.pop("GPU", 0),
                memory=resources.pop("memory", None),
                resources=resources,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            )
            .remote()
        )


@dataclass(frozen=True)
class _End:
    """How a member's part ended; ``failure`` is its diagnosis."""

    leaves: bool
    failure: str | None


class _Member:
    """One node of the trial."""

    def run(self, task: NodeTask, rank: int, num_members: int, group: str) -> _End:
        assert isinstance(task.monitor, RayMonitor)
        lifeline = Lifeline(task.monitor)
        lifeline.start()
        outcome = run_member(
            task,
            rank,
            describe=lambda: describe_node(rank, num_members),
            group=group,
            on_join=lambda start: lifeline.keep_pace(start.report_interval_s),
        )
        failure = None if outcome.failure is None else outcome.failure.describe()
        return _End(outcome.following == "new_group", failure)


class GangRun:
    """A trial's job on its gang; see ``job_driver.Group``."""

    monitor: MonitorClient
    min_num_workers: int | None = None
    vm_names: Sequence[str] = ()

    def __init__(self, gang: Gang, task: NodeTask) -> None:
        self._gang = gang
        self._task = task
        self._is_ended = False

    def fit(self) -> None:
        for number in itertools.count(1):
            ends, loss = self._run_once(number)
            if loss is None:
                break
            self._gang.close()
            if self._is_ended or not self.monitor.may_replace_group(loss):
                raise JobFailedError("; ".join(loss.lost_workers.values()))
        if any(end.leaves for end in ends):
            self._gang.close()
            raise LeaveGroupError("a machine is taken away; the trial goes on elsewhere")
        failures = [end.failure for end in ends if end.failure is not None]
        if failures:
            raise JobFailedError(failures[0])

    def _run_once(self, number: int) -> tuple[list[_End], GroupLoss | None]:
        actors = self._gang.open()
        task = replace(self._task, monitor=self.monitor)
        group = f"{id(self)}-{number}"
        runs = {actor.run.remote(task, rank, len(actors), group): rank for rank, actor in enumerate(actors)}
        ends = []
        waiting = list(runs)
        while waiting:
            done, waiting = ray.wait(waiting, timeout=_LOOK_INTERVAL_S)
            for run in done:
                try:
                    ends.append(ray.get(run))
                except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as err:
                    return [], GroupLoss(number, {runs[run]: str(err)}, is_preempted(err))
        return ends, None

    def end_now(self) -> None:
        """End the actors: ``fit`` raises."""
        self._is_ended = True
        self._gang.close()

    def release(self) -> None:
        """What the actors have is the trial's own."""


def describe_node(rank: int, num_members: int) -> MemberFacts:
    """This process as a node of a trial."""
    node_id = ray.get_runtime_context().get_node_id()
    return MemberFacts(rank, num_members, rank, ray.util.get_node_ip_address(), find_free_port(), node_id)
