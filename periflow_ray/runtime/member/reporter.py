"""Sends what a member's ranks recorded to the monitor, as often as the monitor wants it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType

from periflow_ray.loops import BackgroundLoop, Faults
from periflow_ray.runtime.member.shell import Records
from periflow_ray.runtime.monitor.client import MonitorClient, MonitorLostError
from periflow_ray.runtime.monitor.contract import GivenUpSnapshot, Report, SnapshotId

# The last report brings the last metrics; a monitor that is away for longer has ended the attempt.
CLOSE_TIMEOUT_S = 30.0


class Reporter:
    """A background thread between a shell and the monitor, while it is open.

    Args:
        interval_s: between reports; one that says nothing new is left out.
        take_records: the shell's.
    """

    def __init__(
        self,
        monitor: MonitorClient,
        attempt: int,
        member: int,
        interval_s: float,
        take_records: Callable[[], Records],
    ) -> None:
        self._monitor = monitor
        self._attempt = attempt
        self._member = member
        self._take_records = take_records
        self._lock = threading.Lock()
        self._number = 0
        self._last_steps: Mapping[int, int] = {}
        self._was_pausing = False
        # One that did not arrive is sent again before any other, under its number.
        self._unsent: deque[Report] = deque()
        self._given_up: list[GivenUpSnapshot] = []
        self.is_finishing = False
        """The user's code has ended: no rank has a step to make any more, however long the uploads take."""
        self._faults = Faults(f"the reports of member {member}")
        self._loop = BackgroundLoop("reporter", self._try_send, interval_s, acts_at_close=True, faults=self._faults)

    def __enter__(self) -> Reporter:
        self._loop.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.close(CLOSE_TIMEOUT_S)

    def take(self, *, is_answer: bool = False) -> Report:
        """What was recorded since the last report, for the caller to deliver."""
        with self._lock:
            return self._make(is_answer)

    def give_back(self, report: Report) -> None:
        """Send a report that was taken after all; one that did arrive is not counted twice."""
        with self._lock:
            self._unsent.append(report)

    def give_up(self, snapshot: SnapshotId, reason: str) -> None:
        """Tell now, or as soon as a report arrives, that this node has given up a snapshot: others wait for it."""
        self._try_send(given_up=GivenUpSnapshot(snapshot, reason))

    def answer(self) -> None:
        """Send now what the ranks have just said, because the monitor waits for it."""
        self._try_send(is_answer=True)

    def _try_send(self, is_answer: bool = False, given_up: GivenUpSnapshot | None = None) -> None:
        try:
            self._send(is_answer, given_up)
        except MonitorLostError:  # The lifeline, or Ray, ends this process.
            return
        except Exception as err:  # The next report brings it.
            self._faults.take(err)

    def _send(self, is_answer: bool, given_up: GivenUpSnapshot | None) -> None:
        # One at a time: a slow monitor gets larger batches, not a longer queue.
        with self._lock:
            if given_up is not None:
                self._given_up.append(given_up)
            report = self._make(is_answer)
            is_changed = (report.steps, report.is_pausing) != (self._last_steps, self._was_pausing)
            if report.metrics or report.given_up or is_changed or is_answer:
                self._last_steps, self._was_pausing = report.steps, report.is_pausing
                self._unsent.append(report)
            while self._unsent:
                self._monitor.report(self._unsent[0])
                self._unsent.popleft()

    def _make(self, is_answer: bool) -> Report:
        records = self._take_records()
        self._number += 1
        given_up, self._given_up = tuple(self._given_up), []
        return Report(
            attempt=self._attempt,
            member=self._member,
            number=self._number,
            steps=records.steps,
            total_train_steps=records.total_train_steps,
            metrics=records.metrics,
            is_pausing=records.is_pausing or self.is_finishing,
            asks_for_saves=records.asks_for_saves,
            has_read_checkpoint=records.has_read_checkpoint,
            beginnings=records.beginnings,
            is_answer=is_answer,
            given_up=given_up,
        )
