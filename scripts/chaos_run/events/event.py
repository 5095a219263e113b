"""What an event is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from chaos_run.training import Training

BOUND_S = 150.0


@dataclass(frozen=True)
class Event:
    """Something that may happen.

    Args:
        act: does it, and returns in a few words to whom; raises AssertionError if it shows a broken promise. All
            that it chooses comes from the random numbers that it is given.
        needs_quiet: whether it only means something to a job that makes steps; no other event is joined to it.
        storages: kinds of storage that can have it; empty for all.
        bound_s: within this time the job makes steps and saves them again.
    """

    name: str
    act: Callable[[Training, random.Random], str]
    needs_quiet: bool = False
    storages: tuple[str, ...] = ()
    bound_s: float = BOUND_S
