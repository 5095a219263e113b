"""The Ray Train worker of a function job: one member a rank."""

from __future__ import annotations

import faulthandler
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import ray
import ray.train

from periflow_ray.credentials.credential_types import secret_values
from periflow_ray.errors import PeriFlowError
from periflow_ray.runtime.function_jobs.log_keeper import LogTask
from periflow_ray.runtime.function_jobs.rank_log import RankLog
from periflow_ray.runtime.function_jobs.ray_words import RaySetup
from periflow_ray.runtime.function_jobs.result import RankResult
from periflow_ray.runtime.function_jobs.shell import FunctionShell
from periflow_ray.runtime.member.lifeline import Lifeline
from periflow_ray.runtime.member.member import Member
from periflow_ray.runtime.monitor.client import RayMonitor
from periflow_ray.runtime.ray_train.group_policy import LeaveGroupError
from periflow_ray.runtime.ray_train.workers import describe_worker, worker_group
from periflow_ray.store.root import StorageRoot


@dataclass(frozen=True)
class FunctionTask:
    """What a worker of a function job needs; travels in the train loop's config, whose text Ray's dashboard shows.

    Args:
        function: the pickled function with its config: what it imports may come with the job, and not with the task.
        has_modules: whether it does.
        environment: variables that the function finds.
        secrets: more of them, whose values the job's log hides.
    """

    function: bytes = field(repr=False)
    has_modules: bool
    job_id: int
    claim: str
    root: StorageRoot
    storage_credential: str | None
    monitor: RayMonitor
    environment: Mapping[str, str]
    secrets: Mapping[str, str] = field(repr=False)
    ray: RaySetup


def run_function(task: FunctionTask) -> RankResult:
    """Run the user's function as one rank, restored to the latest usable checkpoint.

    Raises:
        PeriFlowError: the last checkpoint could not be saved.
        LeaveGroupError: the job goes on with other workers, or is over.
        BaseException: what the function raised.
    """
    # Python's last words, at a segmentation fault, go where the standard error leads to by then.
    faulthandler.enable(2, all_threads=False)
    lifeline = Lifeline(task.monitor)
    lifeline.start()
    context = ray.train.get_context()
    rank, node_rank = context.get_world_rank(), context.get_node_rank()
    secrets = (*task.secrets.values(), *secret_values({**os.environ, **task.environment}))
    with RankLog.of(LogTask(task.root, task.job_id, node_rank, rank, secrets)) as log:
        shell = FunctionShell(
            functools.partial(ray.cloudpickle.loads, task.function),
            task.root,
            task.job_id,
            rank=rank,
            local_rank=context.get_local_rank(),
            node_rank=node_rank,
            claim=task.claim,
            storage_credential=task.storage_credential,
            log=log,
            environment={**task.environment, **task.secrets},
            ray=task.ray,
            has_modules=task.has_modules,
        )
        outcome = Member(
            task.monitor,
            task.root,
            task.job_id,
            describe=lambda: describe_worker(node_rank=node_rank, port=0, noun="rank", process="process"),
            group=worker_group(),
            shell=shell,
            log=log,
            note=log.note,
            on_join=lambda start: lifeline.keep_pace(start.report_interval_s),
        ).run()
    if outcome.following is None:
        raise LeaveGroupError("the job is over")
    if shell.error is not None:
        raise shell.error
    if outcome.failure is not None:
        raise PeriFlowError(outcome.failure.summary or outcome.failure.headline())
    if outcome.following != "end":
        raise LeaveGroupError("another rank failed")
    return RankResult(shell.result, shell.reported_metrics)
