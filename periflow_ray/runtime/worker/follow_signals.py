"""Brings a worker what the monitor asks of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import ray

from periflow_ray.runtime.monitor.attempt import Signal

RETRY_INTERVAL_S = 1.0


def follow_signals(monitor: Any, attempt: int) -> Iterator[Signal]:
    """The signals of an attempt as they come; it ends when the monitor is gone, as it is with the job's end."""
    num_seen = 0
    while True:
        try:
            signals = ray.get(monitor.wait_for_signals.remote(attempt, num_seen))
        except ray.exceptions.ActorUnavailableError:
            # The network is cut for a while; if it stays so, the lifeline ends this process.
            time.sleep(RETRY_INTERVAL_S)
            continue
        except ray.exceptions.RayError:
            return
        num_seen += len(signals)
        yield from signals
