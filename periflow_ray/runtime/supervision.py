"""A job's monitor while it lives, and the job's status as the monitor's phases have it."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType

import ray
import ray.train

from periflow_ray.errors import StorageError
from periflow_ray.jobs.attempts import AttemptRecord
from periflow_ray.loops import BackgroundLoop, Faults
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.runtime.launches import describe_launches
from periflow_ray.runtime.monitor.client import JobMonitor, MonitorLostError
from periflow_ray.runtime.monitor.contract import AttemptNews, Ending
from periflow_ray.runtime.notifications import MessageKind, Notifier

WAIT_NOTE_S = 10.0
FINISH_TIMEOUT_S = 30.0
RETRY_INTERVAL_S = 1.0


class Supervision:
    """A monitor, and threads that follow it while it is open; then it is ended.

    Args:
        num_members: Ray Train workers of the job.
        resources_per_member: what each worker asks Ray for.
        notifier: told of ended and resumed attempts.
        on_attempt: called with each attempt that all members have joined.
        on_lost: called when the monitor has died, or the machines did not come in time; ends the group.
        wait_s: for how long machines are waited for; None forever.
    """

    def __init__(
        self,
        monitor: JobMonitor,
        state: StateKeeper,
        *,
        num_members: int,
        resources_per_member: Mapping[str, float],
        notifier: Notifier | None,
        on_attempt: Callable[[AttemptNews], None],
        on_lost: Callable[[], None],
        wait_s: float | None = None,
    ) -> None:
        self.monitor = monitor
        self._state = state
        self._notifier = notifier
        self._num_members = num_members
        self._resources = resources_per_member
        self._on_attempt = on_attempt
        self._on_lost = on_lost
        self._wait_s = wait_s
        self._waits_since_s: float | None = None
        self.why_given_up: str | None = None
        """Why the job's machines are not waited for any more."""
        self._is_finishing = False
        self._thread = threading.Thread(target=self._follow_attempts, name="attempts", daemon=True)
        self._waiting = threading.Event()
        self._closed = threading.Event()
        faults = Faults("looking for what the job waits for")
        self._waits = BackgroundLoop("waits", self._tell_wait, WAIT_NOTE_S, faults=faults)

    def __enter__(self) -> Supervision:
        self._thread.start()
        self._waits.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_finishing = True
        self._closed.set()
        self._waits.begin_close()
        self.monitor.end()
        # A thread that still talks to Ray when the interpreter ends would end it with an error.
        self._thread.join(timeout=FINISH_TIMEOUT_S)
        self._waits.close(FINISH_TIMEOUT_S)

    def finish(self) -> Ending | None:
        """Let the monitor write out everything; returns what it said of the job's end, None if it has died."""
        self._is_finishing = True
        try:
            ending = self.monitor.describe_end()
        except MonitorLostError as err:
            print(f"the monitor did not answer: {err}", file=sys.stderr)
            return None
        # Its storage may hang: what was received is not worth a driver that never ends.
        closing = threading.Thread(target=self._close, name="monitor-close", daemon=True)
        closing.start()
        closing.join(FINISH_TIMEOUT_S)
        return ending

    def _close(self) -> None:
        try:
            self.monitor.close()
        except Exception:
            traceback.print_exc()

    def _follow_attempts(self) -> None:
        self._state.enter("allocating", f"asks for {self._describe_wanted()}")
        number = self._state.attempt
        while True:
            try:
                self._waiting.set()
                news = self.monitor.wait_for_attempt(number + 1)
                self._waiting.clear()
                number = news.number
                self._state.enter("preparing", f"attempt {number} starts on {news.num_members} worker(s)", number)
                self._tell_attempt(news)
                self.monitor.wait_for_start(number)
                self._state.enter("running", f"attempt {number} runs", number)
                if self._notifier is not None and number > 1:
                    self._notifier.notify("resumed", attempt=number)
                self._notify(self.monitor.wait_for_end(number))
            except MonitorLostError:
                self._waiting.clear()
                if not self._is_finishing:
                    self._on_lost()
                return
            except Exception:  # The job goes on, and so does this.
                traceback.print_exc()
                self._closed.wait(RETRY_INTERVAL_S)

    def _tell_attempt(self, news: AttemptNews) -> None:
        try:
            self._on_attempt(news)
        except (OSError, StorageError) as err:  # The next attempt is told again.
            print(f"attempt {news.number} is not recorded: {err}", file=sys.stderr)

    def _tell_wait(self) -> None:
        """Say what the job waits for, if it does."""
        if not self._waiting.is_set():
            self._waits_since_s = None
            return
        # Between a group that was given up and the next one nothing is pending, and the job waits nevertheless.
        if not _is_placement_pending():
            return
        if self._waits_since_s is None:
            self._waits_since_s = time.monotonic()
        wanted = self._describe_wanted()
        if self._state.status in ("preparing", "running"):
            # The machines of the attempt before are gone, and there are no others.
            self._state.enter("allocating", f"asks for {wanted}")
        if self._state.status == "allocating":
            available = ray.available_resources()
            free = _describe({name: available.get(name, 0) for name in self._resources})
            reasons = "".join(f"; {line}" for line in _find_launches())
            text = f"waits for {wanted}; the cluster has {free} free{reasons}"
            self._state.note_waiting(text)
            if self._wait_s is not None and time.monotonic() - self._waits_since_s >= self._wait_s:
                self.why_given_up = f"given up after {self._wait_s:.0f} s (--wait): the job {text}"
                self._on_lost()

    def _describe_wanted(self) -> str:
        return f"{self._num_members} x ({_describe(self._resources)})"

    def _notify(self, record: AttemptRecord | None) -> None:
        if self._notifier is not None and record is not None and record.cause not in (None, "stop"):
            kind: MessageKind = "preempted" if record.cause == "preemption" else "attempt_failed"
            self._notifier.notify(kind, record.text, step=record.last_step, attempt=record.number)


def _find_launches() -> list[str]:
    return describe_launches(ray.get_runtime_context().gcs_address)


def _is_placement_pending() -> bool:
    return any(group["state"] == "PENDING" for group in ray.util.placement_group_table().values())


def _describe(resources: Mapping[str, float]) -> str:
    parts = []
    for name, amount in resources.items():
        parts.append(f"{amount / 2**30:.1f} GiB memory" if name == "memory" else f"{amount:g} {name}")
    return ", ".join(parts)
