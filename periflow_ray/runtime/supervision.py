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
from periflow_ray.runtime.ray_private import PlacementGroupFacts, read_placement_groups

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
        min_num_members: with how many the job starts at least; None for all.
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
        min_num_members: int | None = None,
    ) -> None:
        self.monitor = monitor
        self._state = state
        self._notifier = notifier
        self._num_members = num_members
        self._resources = resources_per_member
        self._on_attempt = on_attempt
        self._on_lost = on_lost
        self._wait_s = wait_s
        self._min_num_members = num_members if min_num_members is None else min_num_members
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
        if not _is_placement_pending() and not (self._is_elastic and not _has_placement()):
            return
        if self._waits_since_s is None:
            self._waits_since_s = time.monotonic()
        wanted = self._describe_wanted()
        if self._state.status in ("preparing", "running"):
            # The machines of the attempt before are gone, and there are no others.
            self._state.enter("allocating", f"asks for {wanted}")
        if self._state.status == "allocating":
            everything = ray.available_resources()
            available = {name: everything.get(name, 0) for name in self._resources}
            free = _describe(available)
            reasons = "".join(f"; {line}" for line in _find_launches())
            least = f"at least {self._min_num_members} of " if self._is_elastic else ""
            overtaken = ", and a job that asks for less may start before it" if any(available.values()) else ""
            text = f"waits for {least}{wanted}; the cluster has {free} free{overtaken}{reasons}"
            self._state.note_waiting(text)
            if self._wait_s is not None and time.monotonic() - self._waits_since_s >= self._wait_s:
                self.why_given_up = f"given up after {self._wait_s:.0f} s (--wait): the job {text}"
                self._on_lost()

    @property
    def _is_elastic(self) -> bool:
        # Such a job asks for a group when it has seen room for one, and for none before.
        return self._min_num_members < self._num_members

    def _describe_wanted(self) -> str:
        return f"{self._num_members} x ({_describe(self._resources)})"

    def _notify(self, record: AttemptRecord | None) -> None:
        if self._notifier is None or record is None or record.cause in (None, "stop", "resize"):
            return
        kind: MessageKind = "preempted" if record.cause == "preemption" else "attempt_failed"
        # It is decided by the time at which the end is told.
        why_over = self.monitor.describe_end().why_over
        next_text = None if why_over is None else f"it does not start again: {why_over}."
        self._notifier.notify(kind, record.text, step=record.last_step, attempt=record.number, next_text=next_text)


def _find_launches() -> list[str]:
    return describe_launches(ray.get_runtime_context().gcs_address)


def _is_placement_pending() -> bool:
    return any(group.is_pending for group in _read_own_groups())


def _has_placement() -> bool:
    return bool(_read_own_groups())


def _read_own_groups() -> list[PlacementGroupFacts]:
    """Placement groups of this driver and of the controllers that it started; other jobs have theirs."""
    own_job_id = ray.get_runtime_context().get_job_id()
    return [group for group in read_placement_groups() if group.creator_job_id_hex == own_job_id]


def _describe(resources: Mapping[str, float]) -> str:
    parts = []
    for name, amount in resources.items():
        parts.append(f"{amount / 2**30:.1f} GiB memory" if name == "memory" else f"{amount:g} {name}")
    return ", ".join(parts)
