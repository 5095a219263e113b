"""Telling that a notification does not work, which must not hurt the job either."""

from __future__ import annotations

import contextlib
from collections.abc import Callable


def tell(on_problem: Callable[[str], None], text: str) -> None:
    """Hand a sentence over; that it cannot be written down is no reason to end a job."""
    with contextlib.suppress(Exception):
        on_problem(text)
