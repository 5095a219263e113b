"""Which step all ranks should save at when machines are about to be taken away. Pure: it decides, others announce."""

from __future__ import annotations

import math
from collections.abc import Iterable

from periflow_ray.sdk.session import SAVE_NOW

# From the moment a rank's step is read until the answer has reached it: two messages over a busy network.
ANNOUNCE_S = 0.3


def choose_save_step(
    steps: Iterable[int],
    step_time_s: float | None,
    *,
    announce_s: float,
    save_time_s: float,
    time_left_s: float | None,
) -> int:
    """The first step that every rank is still before when the announcement reaches it, if there is time for it.

    Args:
        steps: each rank's current step, a moment ago.
        step_time_s: duration of one step; None if it is not known yet.
        announce_s: what the announcement takes to every rank.
        save_time_s: what the save after that step takes, as far as is known.
        time_left_s: until the machines go; None if nothing presses.
    Returns:
        A step to come, or ``SAVE_NOW`` when the time is too short for an agreed one.
    """
    if step_time_s is None:
        return SAVE_NOW
    latest = max(steps, default=0)
    num_steps = 1 + math.ceil(announce_s / step_time_s) if step_time_s > 0 else 1
    if time_left_s is not None and num_steps * step_time_s + save_time_s > time_left_s:
        return SAVE_NOW
    return latest + num_steps
