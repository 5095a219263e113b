"""An unexpected error at a chosen turn of a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

Time = Literal["first", "second", "last"]
TIMES: tuple[Time, ...] = ("first", "second", "last")
INTERVAL_S = 0.005
WaitUntil = Callable[[Callable[[], bool]], None]


class Turns:
    """Called at every turn of a loop; raises at the one that the test chose. ``is_last`` is for the test to set."""

    def __init__(self, failing: Time, error: type[BaseException] = RuntimeError) -> None:
        self.failing = failing
        self._error = error
        self.num = 0
        self.num_raised = 0
        self.is_last = False

    def __call__(self, *_: Any) -> None:
        self.num += 1
        is_chosen = self.is_last if self.failing == "last" else self.num == {"first": 1, "second": 2}[self.failing]
        if is_chosen and self.num_raised == 0:
            self.num_raised += 1
            raise self._error("injected")
