"""The driver of any job: starts the monitor and Ray Train, keeps the job's state true, and says how it ended."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
import ray.train

from periflow_ray.errors import PeriflowRayError, StorageError
from periflow_ray.jobs.logs import read_last_lines
from periflow_ray.jobs.requests import KillNodeDrill, KillRankDrill, NoticeDrill, Request, StopRequest, UnknownRequest
from periflow_ray.runtime.diagnosis import NUM_SHOWN_LINES
from periflow_ray.runtime.graceful_stop import GracefulStop
from periflow_ray.runtime.job_end import JobEnd, describe_early_end, describe_error, find_loss
from periflow_ray.runtime.job_requests import JobRequests
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.runtime.member.sandbox import Sandbox
from periflow_ray.runtime.monitor.client import JobMonitor, MonitorClient, start_monitor
from periflow_ray.runtime.monitor.contract import AttemptNews, Ending
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.runtime.notifications import Notifier
from periflow_ray.runtime.ray_train.group_policy import LeaveGroupError
from periflow_ray.runtime.ray_train.train_run import forget_ray_checkpoints
from periflow_ray.runtime.supervision import Supervision
from periflow_ray.store.patience import Patience
from periflow_ray.store.root import StorageRoot

# A monitor or controller that lives longer than this did some work: the count of quick deaths begins anew.
LONG_LIFE_S = 60.0
MAX_QUICK_DEATHS = 3
REMOVE_TIMEOUT_S = 30.0
# The keeper of a dead rank's log writes what is left in a moment, unless the machine is busy or the storage slow.
LAST_LINES_TIMEOUT_S = 10.0
LAST_LINES_INTERVAL_S = 0.5


@dataclass(frozen=True)
class JobSetup:
    """What the driver is told of a job.

    Args:
        num_members: Ray Train workers.
        min_num_members: as many as it can start with.
        resources_per_member: what each asks Ray for.
        vm_names: VM types whose nodes may have the members, the first choice first; none for any node.
        wait_s: for how long the job waits for machines before it fails; None forever.
        num_sandboxes: sandboxes that one machine may hold of the job.
        is_interactive: whether the driver is a person's own process.
        members_are_ranks: whether each member is a rank with a log of its own: a function job's.
        notifier: told what happens to the job; it is closed at the end.
        open_monitor: starts the job's monitor; None for an actor of Ray beside the driver.
        remove_sandboxes: deletes the job's folders at its end; None to do so on all machines of the cluster.
        on_attempt: called with each attempt that all members have joined.
    """

    num_members: int
    min_num_members: int
    resources_per_member: Mapping[str, float]
    rules: JobRules
    num_sandboxes: int = 1
    vm_names: Sequence[str] = ()
    wait_s: float | None = None
    is_interactive: bool = False
    members_are_ranks: bool = False
    notifier: Notifier | None = None
    on_attempt: Callable[[AttemptNews], None] = lambda news: None
    open_monitor: Callable[[], JobMonitor] | None = None
    remove_sandboxes: Callable[[], None] | None = None


class Group(Protocol):
    """Where a job's members run: ``MonitoredTrainer`` with Ray Train's workers, or another one."""

    monitor: MonitorClient
    min_num_workers: int | None
    vm_names: Sequence[str]

    def fit(self) -> Any:
        """Run the members to the end of the job.

        Raises:
            LeaveGroupError: the job is to go on elsewhere, and not with this driver.
        """

    def end_now(self) -> None:
        """End them, or the wait for them: ``fit`` raises."""

    def release(self) -> None:
        """Give back what they held, when ``fit`` has raised."""


def run_job(
    root: StorageRoot,
    job_id: int,
    state: StateKeeper,
    setup: JobSetup,
    make_trainer: Callable[[Any], Group],
    stop: GracefulStop | None = None,
) -> JobEnd:
    """Run a job to its end, which is recorded and told when this returns.

    A monitor or Ray Train controller that dies is replaced, and the job goes on from its latest committed checkpoint.

    Args:
        make_trainer: makes the job's group, of its monitor.
        stop: how the job is stopped, where others ask for it, too.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(setup.remove_sandboxes or (lambda: remove_sandboxes(root.uri, job_id, setup.num_sandboxes)))
        if setup.notifier is not None:
            # Before the final state is waited for: a storage that is away must not hold up the last message.
            stack.callback(_tell_end, setup.notifier, state)
        stop = stack.enter_context(stop or GracefulStop(state, is_interactive=setup.is_interactive))
        try:
            return _Driver(root, job_id, state, setup, make_trainer, stop).run()
        except Exception as err:
            state.enter_failure(err)
            raise


def _tell_end(notifier: Notifier, state: StateKeeper) -> None:
    match state.status:
        case "success" | "failed" | "stopped" as kind:
            notifier.notify(kind, state.message or "", attempt=state.attempt)
    notifier.close()


class _Driver:
    def __init__(
        self,
        root: StorageRoot,
        job_id: int,
        state: StateKeeper,
        setup: JobSetup,
        make_trainer: Callable[[Any], Group],
        stop: GracefulStop,
    ) -> None:
        self._root = root
        self._job_id = job_id
        self._state = state
        self._setup = setup
        self._make_trainer = make_trainer
        self._stop = stop
        self._patience = Patience(state.note, is_cancelled=lambda: stop.is_asked)
        self._monitor: JobMonitor | None = None
        self._trainer: Group | None = None

    def run(self) -> JobEnd:
        num_quick_deaths = 0
        with JobRequests(self._root, self._job_id, self._carry_out, on_problem=self._state.note):
            while True:
                began_s = time.monotonic()
                end = self._run_once(may_restart=num_quick_deaths < MAX_QUICK_DEATHS)
                if end is not None:
                    return end
                num_quick_deaths = 1 if time.monotonic() - began_s > LONG_LIFE_S else num_quick_deaths + 1

    def _run_once(self, may_restart: bool) -> JobEnd | None:
        """How the job ended; None if it is to be started again because a process of its own died."""
        setup = self._setup
        try:
            self._patience.insist(lambda: forget_ray_checkpoints(self._root, self._job_id))
        except (OSError, StorageError) as err:
            if not self._stop.is_asked:
                raise
            return self._enter_stopped(err)
        open_monitor = setup.open_monitor or (
            lambda: start_monitor(self._root, self._job_id, setup.rules, setup.num_members)
        )
        with Supervision(
            open_monitor(),
            self._state,
            num_members=setup.num_members,
            resources_per_member=setup.resources_per_member,
            notifier=setup.notifier,
            on_attempt=setup.on_attempt,
            on_lost=self._end_group,
            wait_s=setup.wait_s,
            min_num_members=setup.min_num_members,
        ) as supervision:
            self._monitor = supervision.monitor
            self._trainer = trainer = self._make_trainer(supervision.monitor)
            trainer.monitor = supervision.monitor
            trainer.min_num_workers = setup.min_num_members
            trainer.vm_names = setup.vm_names
            self._stop.attach(supervision.monitor, trainer.end_now)
            result, error = None, None
            try:
                result = trainer.fit()
            except BaseException as err:
                error = err
                trainer.end_now()
                trainer.release()
            is_stopped = self._stop.is_asked or (error is not None and not isinstance(error, Exception))
            if is_stopped and error is not None:
                self._end_attempt(supervision.monitor)
            ending = supervision.finish()
            if is_stopped:
                return self._enter_stopped(error)
            if isinstance(error, LeaveGroupError):
                return JobEnd("left")
            if supervision.why_given_up is not None:
                self._state.enter("failed", supervision.why_given_up)
                return JobEnd("failed", error=error)
            lost = find_loss(ending, error)
            if lost is not None and may_restart:
                self._state.note(f"{lost}; it is started again")
                return None
            ending = ending or Ending()
            if error is not None or ending.why_over is not None:
                self._state.enter("failed", describe_error(ending, error, self._read_last_lines))
                return JobEnd("failed", error=error)
            self._state.enter("success", describe_early_end(ending))
            return JobEnd("success", result)

    def _read_last_lines(self, rank: int) -> list[str]:
        """What a dead rank printed at last, when no more comes: who sees the job's end has seen these lines, too."""
        lines: list[str] = []
        deadline_s = time.monotonic() + LAST_LINES_TIMEOUT_S
        while self._setup.members_are_ranks and time.monotonic() < deadline_s:
            before = lines
            # They only help to find the cause; the end of the job is told without them as well.
            with contextlib.suppress(OSError, StorageError):
                lines = read_last_lines(self._root, self._job_id, rank, NUM_SHOWN_LINES)
            if lines and lines == before:
                break
            time.sleep(LAST_LINES_INTERVAL_S)
        return lines

    def _enter_stopped(self, error: BaseException | None) -> JobEnd:
        self._state.enter("stopped", f"stopped: {self._stop.reason}")
        return JobEnd("stopped", error=error, signum=self._stop.signum)

    def _end_group(self) -> None:
        """End the workers of a monitor that has died; ``fit`` raises then."""
        if self._trainer is not None:
            self._trainer.end_now()

    def _end_attempt(self, monitor: MonitorClient) -> None:
        try:
            monitor.stop(0.0)
        except PeriflowRayError as err:
            print(f"the end of the attempt is not recorded: {err}", file=sys.stderr)

    def _carry_out(self, request: Request) -> None:
        match request:
            case StopRequest(timeout_s):
                self._stop.ask(timeout_s)
            case NoticeDrill() | KillRankDrill() | KillNodeDrill():
                if self._monitor is not None:
                    self._monitor.drill(request)
            case UnknownRequest(text):
                self._state.note(f"a request was refused: this job's version of periflow-ray does not know {text}")


def remove_sandboxes(storage_uri: str, job_id: int, num_sandboxes: int) -> None:
    """Delete the job's folders on all machines of the cluster, however it ended; here even where Ray is gone."""

    def remove() -> None:
        for node_rank in range(num_sandboxes):
            Sandbox(storage_uri, job_id, node_rank).remove()

    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    try:
        tasks = [
            ray.remote(num_cpus=0)(remove).options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote()
            for node in ray.nodes()
            if node["Alive"]
        ]
        ray.wait(tasks, num_returns=len(tasks), timeout=REMOVE_TIMEOUT_S)
    finally:
        # A terminal's Ctrl-C may have ended Ray's processes, and a busy machine may not have begun the task in time.
        remove()
