"""Ends a worker that cannot reach the job's monitor any more, and with it everything that it started.

A machine whose network is cut does not learn that the cluster has given it up: for minutes its connections look alive
(TCP's retries, Ray's keepalive), and its ranks train on while the job goes on elsewhere.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from signal import SIGKILL
from typing import Any

import ray

PING_INTERVAL_S = 2.0
# Ray gives a machine up after a minute of silence by default: by then nothing of the job runs on it any more.
LOST_AFTER_S = 20.0


def share_fate(monitor: Any) -> None:
    """Kill this process once the monitor has not answered for ``LOST_AFTER_S``; watched by a background thread.

    The keepers of this process's commands end them when it is gone.
    """
    threading.Thread(target=_watch, args=(monitor,), name="lifeline", daemon=True).start()


def _watch(monitor: Any) -> None:
    while True:
        try:
            is_reached = _reach(monitor)
        except ray.exceptions.RayError:  # The monitor has ended, and Ray ends its workers.
            return
        if not is_reached:
            print(f"the job's monitor did not answer for {LOST_AFTER_S:.0f} s: this process ends", file=sys.stderr)
            os.kill(os.getpid(), SIGKILL)
        time.sleep(PING_INTERVAL_S)


def _reach(monitor: Any) -> bool:
    deadline_s = time.monotonic() + LOST_AFTER_S
    while True:
        # Any question that the monitor answers at once.
        ping = monitor.why_over.remote()
        ray.wait([ping], timeout=max(0.0, deadline_s - time.monotonic()))
        # Looked at again when the time is over: it may be this process that stood still, and the answer is there.
        if not ray.wait([ping], timeout=1)[0]:
            return False
        try:
            ray.get(ping)
        except ray.exceptions.ActorUnavailableError:  # A connection broke; the next one may work.
            if time.monotonic() > deadline_s:
                return False
            time.sleep(PING_INTERVAL_S)
        else:
            return True
