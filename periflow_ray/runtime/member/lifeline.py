"""Ends a worker that cannot reach the job's monitor any more, and with it everything that it started.

A machine whose network is cut does not learn that the cluster has given it up: for minutes its connections look alive
(TCP's retries, Ray's keepalive), and its ranks train on while the job goes on elsewhere.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass
from signal import SIGKILL

from periflow_ray.runtime.monitor.client import MonitorLostError, MonitorUnreachableError, RayMonitor

# Asked only after so long without an answer to any other call.
PING_INTERVAL_S = 2.0
# So long a monitor is asked in vain before it counts as lost.
PATIENCE_S = 18.0
# Ray gives a machine up after a minute of silence by default: by then nothing of the job runs on it any more.
MAX_LOST_AFTER_S = 55.0
_LOOK_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Pace:
    """Seconds without an answer until the monitor is asked, and until it counts as lost."""

    ping_after_s: float
    lost_after_s: float

    @staticmethod
    def of(report_interval_s: float) -> Pace:
        """For a member that reports this often."""
        ping_after_s = min(max(PING_INTERVAL_S, 1.2 * report_interval_s), MAX_LOST_AFTER_S - PATIENCE_S)
        return Pace(ping_after_s, ping_after_s + PATIENCE_S)


class Lifeline:
    """Kills this process once the monitor has not answered any question for ``PATIENCE_S``.

    The keepers of this process's commands end them when it is gone.
    """

    def __init__(self, monitor: RayMonitor) -> None:
        self._monitor = monitor
        self._has_ended = False
        self._pace = Pace.of(0.0)

    def keep_pace(self, report_interval_s: float) -> None:
        """Ask only where not even the reports of this member are answered: many members would be many questions."""
        self._pace = Pace.of(report_interval_s)

    def start(self) -> None:
        """Begin to watch, in background threads that last as long as this process."""
        threading.Thread(target=self._ping, name="lifeline-ping", daemon=True).start()
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def _ping(self) -> None:
        while True:
            time.sleep(PING_INTERVAL_S)
            if time.monotonic() - self._monitor.last_answer_s < self._pace.ping_after_s:
                continue
            try:
                self._monitor.ping()
            except MonitorUnreachableError:
                continue
            except MonitorLostError:  # The monitor has ended, and Ray ends its workers.
                self._has_ended = True
                return
            except Exception as err:
                print(f"the job's monitor answered with an error: {err}", file=sys.stderr)

    def _watch(self) -> None:
        silent_s, answered_s = 0.0, self._monitor.last_answer_s
        while silent_s < self._pace.lost_after_s and not self._has_ended:
            time.sleep(_LOOK_INTERVAL_S)
            # Counted in looks: while this process stands still, it is not the monitor that is silent.
            silent_s += _LOOK_INTERVAL_S
            if self._monitor.last_answer_s != answered_s:
                silent_s, answered_s = 0.0, self._monitor.last_answer_s
        if not self._has_ended:
            print(
                f"the job's monitor did not answer for {self._pace.lost_after_s:.0f} s: this process ends",
                file=sys.stderr,
            )
            os.kill(os.getpid(), SIGKILL)
