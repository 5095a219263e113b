"""The Ray Train worker of a command job: one member a node."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import ray
import ray.train

from periflow_ray.credentials.cloud_environment import set_cloud_environment
from periflow_ray.credentials.credential_types import secret_values
from periflow_ray.errors import JobFailedError
from periflow_ray.jobs.events import EventWriter
from periflow_ray.jobs.logs import LogWriter
from periflow_ray.plan import JobPlan
from periflow_ray.runtime.command_jobs.shell import CommandShell
from periflow_ray.runtime.environments.engine import Login
from periflow_ray.runtime.member.lifeline import Lifeline
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.runtime.member.member import Member, Outcome
from periflow_ray.runtime.monitor.client import MonitorClient, RayMonitor
from periflow_ray.runtime.monitor.contract import AttemptStart, MemberFacts
from periflow_ray.runtime.ray_train.group_policy import LeaveGroupError
from periflow_ray.runtime.ray_train.workers import describe_worker, report_newest, worker_group
from periflow_ray.store.root import StorageRoot


@dataclass(frozen=True)
class NodeTask:
    """What a node needs; travels as the train loop's config, whose text Ray's dashboard shows."""

    plan_json: str
    job_id: int
    claim: str
    root: StorageRoot
    monitor: MonitorClient
    secrets: Mapping[str, str] = field(repr=False)
    shell_variables: Mapping[str, str] = field(repr=False)
    # Only to be masked, in case it gets into an output after all; empty without secrets.
    secrets_key: str = field(repr=False, default="")
    # For the registry of the job's image.
    login: Login | None = field(repr=False, default=None)


def run_node(task: NodeTask) -> None:
    """Run one node's share of the job; returns when its command succeeded.

    Raises:
        JobFailedError: the command failed; the diagnosis is with the monitor too.
        LeaveGroupError: the job goes on with other workers.
    """
    assert isinstance(task.monitor, RayMonitor)
    lifeline = Lifeline(task.monitor)
    lifeline.start()
    node_rank = ray.train.get_context().get_world_rank()
    outcome = run_member(
        task,
        node_rank,
        describe=lambda: describe_worker(node_rank=node_rank, port=find_free_port(), noun="node", process="agent"),
        group=worker_group(),
        on_join=lambda start: lifeline.keep_pace(start.report_interval_s),
    )
    if outcome.following == "new_group":
        raise LeaveGroupError("this machine is taken away; the job goes on with other workers")
    report_newest(task.root, task.monitor, node_rank)
    if outcome.failure is not None:
        raise JobFailedError(outcome.failure.describe())


def run_member(
    task: NodeTask,
    node_rank: int,
    *,
    describe: Callable[[], MemberFacts],
    group: str,
    on_join: Callable[[AttemptStart], None] = lambda start: None,
) -> Outcome:
    """Take part in the job as one node of it, until its end or until it goes on elsewhere.

    Args:
        describe: gives this member's facts, anew for each attempt.
        group: name of the worker group.
        on_join: called with each attempt's start.
    """
    # Linked datasets and the user's own code use the cloud's usual chain.
    set_cloud_environment(task.shell_variables)
    plan = JobPlan.model_validate_json(task.plan_json)
    attempt = 0

    def begin(start: AttemptStart) -> None:
        nonlocal attempt
        attempt = start.attempt
        on_join(start)

    writer = LogWriter(task.root, task.job_id, node_rank)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(
            MemberLog(
                writer,
                f"node {node_rank}",
                is_local=task.root.is_local,
                secrets=(
                    *task.secrets.values(),
                    task.secrets_key,
                    "" if task.login is None else task.login.password,
                    # The command has them as well; what it prints of its environment is no place for keys.
                    *secret_values({**os.environ, **task.shell_variables, **plan.env}),
                ),
                events=EventWriter(task.root, task.job_id, f"node-{node_rank}"),
            )
        )

        def note(text: str) -> None:
            log.note(text, attempt)

        shell = CommandShell(
            plan,
            task.root,
            task.job_id,
            node_rank,
            task.claim,
            task.secrets,
            log,
            note,
            task.shell_variables,
            task.login,
        )
        stack.callback(shell.close_launcher)
        return Member(
            task.monitor,
            task.root,
            task.job_id,
            describe=describe,
            group=group,
            shell=shell,
            log=log,
            note=note,
            bandwidth_bytes_per_s=plan.upload_bandwidth_bytes_per_s,
            on_join=begin,
        ).run()


def find_free_port() -> int:
    """A port that is free now; the user's processes bind it a moment later."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
