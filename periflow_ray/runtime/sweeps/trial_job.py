"""A trial's job in this process: its driver is here, and on one node its monitor and its member, too.

A worker group of Ray Train takes seconds to start; a trial of a sweep is often over by then.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from periflow_ray.credentials.credential_types import secret_values
from periflow_ray.errors import JobFailedError
from periflow_ray.jobs import read_claim
from periflow_ray.jobs.metrics import Metric
from periflow_ray.jobs.succession import driver_id_of
from periflow_ray.plan import JobPlan
from periflow_ray.plan.trial import TRIAL_REPORT_INTERVAL_S
from periflow_ray.runtime.command_jobs.node import NodeTask, run_member
from periflow_ray.runtime.environments.login import read_login
from periflow_ray.runtime.graceful_stop import GracefulStop
from periflow_ray.runtime.job_driver import JobSetup, run_job
from periflow_ray.runtime.job_end import JobEnd
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.runtime.member.sandbox import Sandbox
from periflow_ray.runtime.monitor.actor import Monitor
from periflow_ray.runtime.monitor.client import MonitorClient
from periflow_ray.runtime.monitor.in_process import InProcessMonitor
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.runtime.monitor.sinks import MetricSink, plan_sinks, sink_variables, with_hparams
from periflow_ray.runtime.ray_train.group_policy import LeaveGroupError
from periflow_ray.runtime.sweeps.gang import Gang, GangRun, describe_node
from periflow_ray.store.patience import Patience
from periflow_ray.store.root import StorageRoot
from periflow_ray.sweeps.trials import take_up_trial

# Until the processes of a trial that is stopped are gone, and its last words are written.
_END_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """What an agent needs for its trials.

    Args:
        num_nodes: of each trial.
        node_resources: what each node of several asks Ray for.
        sweep_plan: of the sweep as it runs now; None where there is none of ours.
    """

    root: StorageRoot
    sweep_plan: JobPlan | None = None
    num_nodes: int = 1
    node_resources: Mapping[str, float] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(repr=False, default_factory=dict)
    shell_variables: Mapping[str, str] = field(repr=False, default_factory=dict)
    secrets_key: str = field(repr=False, default="")


@dataclass(frozen=True, kw_only=True)
class SweepTask(TrialTask):
    """What an agent needs of its sweep.

    Args:
        sweep_id: the sweep's own job.
    """

    sweep_id: int


@dataclass(frozen=True)
class Report:
    """What rank 0 reported at a step."""

    step: int
    values: Mapping[str, object]


class TrialJob:
    """Runs the job in threads of this process, from ``start`` on.

    Args:
        metric: by which the trials are compared.
        gang: the members of a trial on several nodes; without one the member is in this process.
    """

    def __init__(self, task: TrialTask, job_id: int, metric: str, gang: Gang | None = None) -> None:
        self._task = task
        self._metric = metric
        self._gang = gang
        self.job_id = job_id
        # What comes out of it: reports in their order, then its end or an error.
        self._outcomes: queue.SimpleQueue[Report | JobEnd | BaseException] = queue.SimpleQueue()
        self._stop: GracefulStop | None = None
        self._is_attached = threading.Event()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"job-{job_id}", daemon=True)

    def start(self) -> None:
        """Begin, or go on from the newest checkpoint of the job."""
        self._thread.start()

    def next_outcome(self) -> Report | JobEnd:
        """Wait for the next report, or for the end.

        Raises:
            Exception: the job could not be run.
        """
        outcome = self._outcomes.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def wait_for_end(self, timeout_s: float = _END_TIMEOUT_S) -> bool:
        """Let a script that has made its last step come to its end by itself; whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def end(self, reason: str, save_timeout_s: float) -> None:
        """Stop it, and return when all is over.

        Args:
            save_timeout_s: how long a save may take; 0 saves nothing.
        """
        if not self._thread.is_alive():
            return
        self._is_over.set()
        self._is_attached.wait()
        if self._stop is not None:
            self._stop.reason = reason
            self._stop.ask(save_timeout_s)
        self._thread.join(save_timeout_s + _END_TIMEOUT_S)

    def _run(self) -> None:
        try:
            if self._gang is None:
                end = self._run_job(self._outcomes.put)
            else:
                with _open_line(self._outcomes.put) as hand_on:
                    end = self._run_job(hand_on)
            self._outcomes.put(end)
        except BaseException as err:
            self._outcomes.put(err)
        finally:
            self._is_attached.set()

    def _run_job(self, hand_on: Callable[[Report], None]) -> JobEnd:
        task, job_id, gang = self._task, self.job_id, self._gang
        patience = Patience(print, is_cancelled=self._is_over.is_set)
        plan, record = patience.insist(lambda: take_up_trial(task.root, job_id, task.sweep_plan))
        root = task.root if plan.fsync else task.root.without_fsync()
        driver_id = driver_id_of(record)
        claim = patience.insist(lambda: read_claim(root, job_id))
        with patience.insist(lambda: StateKeeper(root, job_id, driver_id=driver_id)) as state:
            guessed = secret_values({**task.shell_variables, **plan.env})
            state.hide((*task.secrets.values(), task.secrets_key, *guessed))
            sinks = with_hparams(
                plan_sinks(plan.plugin, record, plan.env, state.note), plan.hparams or {}, self._metric
            )
            variables = sink_variables(sinks, given={*plan.env, *plan.secret_names})
            plan = plan.model_copy(update={"env": {**variables.settings, **plan.env}})
            rules = JobRules(
                devices_per_member=plan.devices_per_node,
                max_failures=plan.max_failures,
                retention=Retention(plan.keep_last, plan.keep_best),
                hang_timeout_s=plan.hang_timeout_s,
                sinks=(*sinks, _Reports(hand_on)),
                driver_id=driver_id,
                start_from=plan.start_from,
                report_interval_s=TRIAL_REPORT_INTERVAL_S,
            )

            def make_group(monitor: MonitorClient) -> _Here | GangRun:
                node = NodeTask(
                    plan.model_dump_json(),
                    job_id,
                    claim,
                    root,
                    monitor,
                    {**variables.secrets, **task.secrets},
                    task.shell_variables,
                    task.secrets_key,
                    read_login(plan, state.note),
                )
                return _Here(node) if gang is None else GangRun(gang, node)

            here: dict[str, Any] = {
                "open_monitor": lambda: InProcessMonitor(lambda: Monitor(root, job_id, rules)).__enter__(),
                "remove_sandboxes": Sandbox(root.uri, job_id, 0).remove,
            }
            setup = JobSetup(
                num_members=plan.num_nodes,
                min_num_members=plan.num_nodes,
                resources_per_member=plan.resources_per_node,
                rules=rules,
                num_sandboxes=plan.num_nodes,
                **(here if gang is None else {}),
            )
            self._stop = GracefulStop(state, is_interactive=False)
            self._is_attached.set()
            return run_job(root, job_id, state, setup, make_group, self._stop)


class _Here:
    """The job's one member, in the thread that calls ``fit``."""

    monitor: MonitorClient
    min_num_workers: int | None = None
    vm_names: Sequence[str] = ()

    def __init__(self, task: NodeTask) -> None:
        self._task = task

    def fit(self) -> None:
        outcome = run_member(self._task, 0, describe=lambda: describe_node(0, 1), group=str(id(self)))
        if outcome.following == "new_group":
            raise LeaveGroupError("this machine is taken away; the trial goes on elsewhere")
        if outcome.failure is not None:
            raise JobFailedError(outcome.failure.describe())

    def end_now(self) -> None:
        """Its command ends when the monitor says so."""

    def release(self) -> None:
        """What it has is this process's own."""


@contextlib.contextmanager
def _open_line(take: Callable[[Report], None]) -> Iterator[Callable[[Report], None]]:
    """A line from the monitor's process to this one: what is handed on there has been taken here at the end."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    line = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})

    def forward() -> None:
        while (report := line.get()) is not None:
            take(report)

    thread = threading.Thread(target=forward, name="reports", daemon=True)
    thread.start()
    try:
        yield line.put
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            line.put(None)
            thread.join(_END_TIMEOUT_S)
            line.shutdown()


class _Reports:
    """A metric sink that hands on what rank 0 reports."""

    def __init__(self, hand_on: Callable[[Report], None]) -> None:
        self._hand_on = hand_on

    def open(self, root: StorageRoot, job_id: int, on_problem: Callable[[str], None]) -> MetricSink:
        return self

    def environment(self) -> Mapping[str, str]:
        return {}

    def record(self, metrics: Sequence[Metric]) -> None:
        for metric in metrics:
            if metric.rank == 0:
                self._hand_on(Report(metric.step, metric.values))

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is held back."""
