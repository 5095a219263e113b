"""From a cloud's notice to the machine's departure: drains its Ray node, waits for the saves, acknowledges."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from periflow_ray.errors import ClusterError
from periflow_ray.loops import Faults, describe_error
from periflow_ray.runtime.notices.clouds import find_source
from periflow_ray.runtime.notices.notice import MetadataError, Notice, NoticeSource
from periflow_ray.runtime.notices.ray_machine import DrainableMachine

# Short against the shortest notice, 30 s, so that a metadata service that was away is not missed when it is back.
MAX_POLL_PAUSE_S = 8.0
# A machine outside every cloud is asked less and less often, but a cloud's machine may boot before its network works.
MAX_SEARCH_PAUSE_S = 60.0
FOLLOW_INTERVAL_S = 1.0
# A drain is tried at least for so long, however short the notice is or wrong the clock.
MIN_TRY_S = 30.0
# All jobs on the machine see the drain within this time, and say that they are saving if they are.
MIN_STAY_S = 3.0


@dataclass
class Departure:
    """What has been done about one preemption notice."""

    notice: Notice
    deadline_unix_s: float
    give_up_unix_s: float
    node_ids: Sequence[str] = ()
    drained_unix_s: float | None = None
    has_failed: bool = False
    is_needed: bool = True


class Watcher:
    """Calls nobody's code but the source's and the machine's, and never fails because one of them does.

    Args:
        sources: candidates; the first whose metadata service answers is used.
        interval_s: seconds between two polls; None for the cloud's own.
        log: gets one line for each event.
        unix_s: the clock of deadlines.
        monotonic_s: the clock of pauses.
    """

    def __init__(
        self,
        sources: list[NoticeSource],
        machine: DrainableMachine,
        log: Callable[[str], None],
        *,
        interval_s: float | None = None,
        unix_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources = sources
        self._machine = machine
        self._log = log
        self._interval_s = interval_s
        self._unix_s = unix_s
        self._monotonic_s = monotonic_s
        self._source: NoticeSource | None = None
        self._departure: Departure | None = None
        self._num_failures_in_row = 0
        self._next_poll_s = self._next_follow_s = monotonic_s()
        self._faults = Faults("the preemption watcher")
        self.num_metadata_errors = 0

    def run(self) -> None:
        """Watch until the process is told to end."""
        while True:
            try:
                pause_s = self.tick()
            except Exception as err:  # The machine has no other watcher.
                self._faults.take(err)
                pause_s = FOLLOW_INTERVAL_S
            time.sleep(pause_s)

    def tick(self) -> float:
        """Do what is due; returns the seconds until something is."""
        if self._monotonic_s() >= self._next_poll_s:
            pause_s = self._poll()
            self._next_poll_s = self._monotonic_s() + pause_s
        if self._departure is None:
            return max(0.0, self._next_poll_s - self._monotonic_s())
        if self._monotonic_s() >= self._next_follow_s:
            self._follow(self._departure)
            self._next_follow_s = self._monotonic_s() + FOLLOW_INTERVAL_S
        return max(0.0, min(self._next_poll_s, self._next_follow_s) - self._monotonic_s())

    def _poll(self) -> float:
        """Ask the metadata service once; returns the seconds to the next time."""
        try:
            source = self._source or self._find_source()
            notice = source.poll()
        except MetadataError as err:
            return self._count_failure(str(err))
        except Exception as err:  # One answer that nobody thought of must not be the last one.
            self._faults.take(err)
            return self._count_failure(describe_error(err))
        if self._num_failures_in_row:
            self._log(f"the metadata service answers again, after {self._num_failures_in_row} failed attempts")
            self._num_failures_in_row = 0
        if notice is not None:
            self._take(notice)
        return self._interval_s or source.interval_s

    def _find_source(self) -> NoticeSource:
        self._source = self._sources[0] if len(self._sources) == 1 else find_source(self._sources)
        self._log(f"watching {self._source.cloud_name}'s notices")
        return self._source

    def _count_failure(self, reason: str) -> float:
        self.num_metadata_errors += 1
        self._num_failures_in_row += 1
        if self._num_failures_in_row == 1:
            self._log(f"the metadata service fails, trying again: {reason}")
        first_pause_s = self._interval_s or (self._source.interval_s if self._source else 1.0)
        longest_s = MAX_POLL_PAUSE_S if self._source else MAX_SEARCH_PAUSE_S
        # The exponent is bounded only to keep the number finite.
        return max(first_pause_s, min(longest_s, first_pause_s * 2.0 ** min(self._num_failures_in_row, 16)))

    def _take(self, notice: Notice) -> None:
        if notice.kind == "warning":
            self._log(f"warning, nothing is drained: {notice.text}")
            return
        now_unix_s = self._unix_s()
        # Ray reads "no deadline" as all the time in the world, and means the opposite of the cloud.
        deadline_unix_s = now_unix_s if notice.deadline_unix_s is None else notice.deadline_unix_s
        self._log(f"{notice.text}; {max(0.0, deadline_unix_s - now_unix_s):.0f} s left, draining this machine in Ray")
        self._departure = Departure(notice, deadline_unix_s, max(deadline_unix_s, now_unix_s + MIN_TRY_S))
        self._next_follow_s = self._monotonic_s()

    def _follow(self, departure: Departure) -> None:
        """Take the next step of a departure: drain, then wait for the save, then acknowledge."""
        try:
            if departure.drained_unix_s is None:
                self._drain(departure)
            elif self._unix_s() >= departure.drained_unix_s + MIN_STAY_S:
                self._acknowledge_when_done(departure)
        except (ClusterError, MetadataError) as err:
            self._say_failed(departure, str(err))
        except Exception as err:
            self._faults.take(err)
            self._say_failed(departure, describe_error(err))
        if self._departure is not None and self._unix_s() > departure.give_up_unix_s:
            self._departure = None
            self._log("the deadline is over and this machine still there; waiting for the next notice")

    def _say_failed(self, departure: Departure, reason: str) -> None:
        if not departure.has_failed:
            self._log(f"trying again until the deadline: {reason}")
        departure.has_failed = True

    def _drain(self, departure: Departure) -> None:
        departure.node_ids = self._machine.drain(departure.notice.text, departure.deadline_unix_s)
        departure.drained_unix_s = self._unix_s()
        departure.has_failed = False
        self._log(f"drained Ray node {', '.join(departure.node_ids)}")

    def _acknowledge_when_done(self, departure: Departure) -> None:
        if departure.is_needed:
            if self._machine.is_needed(departure.node_ids):
                return
            departure.is_needed = False
            self._log("the work on this machine is saved or has ended")
        if departure.notice.is_acknowledgeable:
            # A node that is lost before its deadline counts as failed in Ray, not as preempted.
            self._machine.release(departure.node_ids, departure.notice.text)
            self._acknowledge(departure.notice)
        self._departure = None

    def _acknowledge(self, notice: Notice) -> None:
        assert self._source is not None
        self._source.acknowledge(notice)
        self._log(f"told {self._source.cloud_name} that it may take this machine now")
