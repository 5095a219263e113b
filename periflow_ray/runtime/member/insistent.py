"""A member's way to its monitor: an error that passes costs neither a checkpoint nor the attempt."""

from __future__ import annotations

import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, TypeVar

from periflow_ray.runtime.monitor.actor import Monitor
from periflow_ray.runtime.monitor.client import MonitorCalls, MonitorClient, MonitorLostError

NUM_TRIES = 3
RETRY_INTERVAL_S = 0.5

_Params = ParamSpec("_Params")
_Answer = TypeVar("_Answer")


class InsistentMonitor(MonitorCalls):
    """Repeats a call that raised, because what a member asks is safe to repeat and others wait for it.

    Raises:
        MonitorLostError: at once.
        Exception: from every call, what its last try raised.
    """

    def __init__(self, monitor: MonitorClient) -> None:
        self._monitor = monitor

    def _ask(
        self,
        method: Callable[Concatenate[Monitor, _Params], Awaitable[_Answer]],
        *args: _Params.args,
        **kwargs: _Params.kwargs,
    ) -> _Answer:
        num_left = NUM_TRIES
        while True:
            num_left -= 1
            try:
                answer: _Answer = getattr(self._monitor, method.__name__)(*args, **kwargs)
                return answer
            except MonitorLostError:
                raise
            except Exception:
                if num_left == 0:
                    raise
                traceback.print_exc()
                time.sleep(RETRY_INTERVAL_S)

    def _tell(
        self,
        method: Callable[Concatenate[Monitor, _Params], Awaitable[None]],
        *args: _Params.args,
        **kwargs: _Params.kwargs,
    ) -> None:
        # No member calls what is not waited for.
        getattr(self._monitor, method.__name__)(*args, **kwargs)
