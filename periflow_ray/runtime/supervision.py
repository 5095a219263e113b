"""What the driver of any job does beside Ray Train: follow the attempts, and explain a failure."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.train

from periflow_ray.errors import PeriflowRayError
from periflow_ray.jobs.attempts import AttemptRecord
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.runtime.monitor.actor import Monitor
from periflow_ray.runtime.monitor.meeting import JobRules
from periflow_ray.runtime.notifications import MessageKind, Notifier
from periflow_ray.runtime.ray_private import find_cause
from periflow_ray.runtime.worker.sandbox import Sandbox
from periflow_ray.store.root import StorageRoot

WAIT_NOTICE_S = 10.0
MONITOR_TIMEOUT_S = 30.0
_NUM_ERROR_LINES = 6


@dataclass(frozen=True)
class Ending:
    """How a job ended, in the monitor's words.

    Args:
        why_over: why it was given up; None if it was not.
        failures: of the last attempt, the cause first.
        text: why the last attempt ended; empty if it succeeded.
    """

    why_over: str | None = None
    failures: Sequence[Failure] = ()
    text: str = ""


class Supervision:
    """A job's monitor, and a thread that turns the monitor's phases into the job's status.

    Args:
        num_members: Ray Train workers of the job.
        resources_per_member: what each worker asks Ray for.
        rules: what the monitor is told of the job.
        notifier: told of ended and resumed attempts.
    """

    def __init__(
        self,
        root: StorageRoot,
        job_id: int,
        state: StateKeeper,
        *,
        num_members: int,
        resources_per_member: Mapping[str, float],
        rules: JobRules,
        notifier: Notifier | None = None,
    ) -> None:
        # Every member may wait in the monitor at once.
        actor_class = ray.remote(
            num_cpus=0,
            max_concurrency=1000 + 4 * num_members,
            # Beside the driver: Ray would put it on any machine, and the loss of that one would be the job's end.
            scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            ),
        )(Monitor)
        self.monitor: Any = actor_class.remote(root, job_id, rules)
        self._state = state
        self._notifier = notifier
        self._num_members = num_members
        self._resources = resources_per_member
        self._thread = threading.Thread(target=self._follow_attempts, name="attempts", daemon=True)
        self._thread.start()

    def finish(self) -> Ending:
        """Let the monitor write out everything and end it; returns what it said of the job's end."""
        ending = Ending()
        try:
            ending = Ending(
                ray.get(self.monitor.why_over.remote(), timeout=MONITOR_TIMEOUT_S),
                ray.get(self.monitor.attempt_failures.remote(), timeout=MONITOR_TIMEOUT_S),
                ray.get(self.monitor.attempt_text.remote(), timeout=MONITOR_TIMEOUT_S),
            )
            ray.get(self.monitor.close.remote(), timeout=MONITOR_TIMEOUT_S)
        except ray.exceptions.RayError as err:
            print(f"the monitor did not answer: {err}", file=sys.stderr)
        ray.kill(self.monitor)
        # A thread that still talks to Ray when the interpreter ends would end it with an error.
        self._thread.join(timeout=MONITOR_TIMEOUT_S)
        return ending

    def _follow_attempts(self) -> None:
        wanted = f"{self._num_members} x ({_describe(self._resources)})"
        self._state.enter("allocating", f"asks for {wanted}")
        attempt = self._state.attempt
        try:
            while True:
                started = self.monitor.wait_for_attempt.remote(attempt + 1)
                while not ray.wait([started], timeout=WAIT_NOTICE_S)[0]:
                    if not _is_placement_pending():
                        continue
                    if self._state.status in ("preparing", "running"):
                        # The machines of the attempt before are gone, and there are no others.
                        self._state.enter("allocating", f"asks for {wanted}")
                    if self._state.status == "allocating":
                        available = ray.available_resources()
                        free = _describe({name: available.get(name, 0) for name in self._resources})
                        self._state.note_waiting(f"waits for {wanted}; the cluster has {free} free")
                attempt, num_members = ray.get(started)
                self._state.enter("preparing", f"attempt {attempt} starts on {num_members} worker(s)", attempt)
                ray.get(self.monitor.wait_for_start.remote(attempt))
                self._state.enter("running", f"attempt {attempt} runs", attempt)
                if self._notifier is not None and attempt > 1:
                    self._notifier.notify("resumed", attempt=attempt)
                self._notify(ray.get(self.monitor.wait_for_end.remote(attempt)))
        except ray.exceptions.RayError:  # The monitor has ended; the main thread says how the job did.
            return

    def _notify(self, record: AttemptRecord | None) -> None:
        if self._notifier is not None and record is not None and record.cause not in (None, "stop"):
            kind: MessageKind = "preempted" if record.cause == "preemption" else "attempt_failed"
            self._notifier.notify(kind, record.text, step=record.last_step, attempt=record.number)


def describe_error(ending: Ending, error: Exception | None) -> str:
    """Why a job failed: a worker that died, else the first member's diagnosis, else what Ray or the monitor says.

    Args:
        error: what Ray raised; None if all workers left as they were told.
    """
    text = _describe_cause(ending, error)
    return text if ending.why_over is None else f"{text}\nNot started again: {ending.why_over}."


def _describe_cause(ending: Ending, error: Exception | None) -> str:
    causes = getattr(error, "worker_failures", None) or {}
    for rank in sorted(causes):
        cause = find_cause(causes[rank])
        if isinstance(cause, ray.exceptions.OutOfMemoryError):
            return f"worker {rank} was ended by Ray because the machine's memory was full.\n{_first_lines(str(cause))}"
        if isinstance(cause, ray.exceptions.RayActorError):
            # A worker never dies because of another one, so this comes before what the others report.
            return f"worker {rank} died: its process was killed, or its machine was lost.\n{_first_lines(str(cause))}"
    if ending.failures:
        return ending.failures[0].describe()
    if error is None:
        return ending.text
    for rank in sorted(causes):
        is_own = isinstance(causes[rank], PeriflowRayError)
        return str(causes[rank]) if is_own else f"worker {rank}: {_first_lines(str(causes[rank]))}"
    return _first_lines(str(error))


def remove_sandboxes(storage_uri: str, job_id: int, num_nodes: int) -> None:
    """Delete what failed or killed workers left on the cluster's machines."""

    def remove() -> None:
        for node_rank in range(num_nodes):
            Sandbox(storage_uri, job_id, node_rank).remove()

    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    tasks = [
        ray.remote(num_cpus=0)(remove).options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote()
        for node in ray.nodes()
        if node["Alive"]
    ]
    ray.wait(tasks, num_returns=len(tasks), timeout=MONITOR_TIMEOUT_S)


def _is_placement_pending() -> bool:
    return any(group["state"] == "PENDING" for group in ray.util.placement_group_table().values())


def _describe(resources: Mapping[str, float]) -> str:
    parts = []
    for name, amount in resources.items():
        parts.append(f"{amount / 2**30:.1f} GiB memory" if name == "memory" else f"{amount:g} {name}")
    return ", ".join(parts)


def _first_lines(text: str) -> str:
    return "\n".join([line for line in text.splitlines() if line.strip()][:_NUM_ERROR_LINES])
