"""How a job ended, and why, in a user's words."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import ray
import ray.train

from periflow_ray.errors import PeriflowRayError
from periflow_ray.runtime.diagnosis import describe_last_lines
from periflow_ray.runtime.monitor.contract import Ending
from periflow_ray.runtime.ray_private import find_cause

_NUM_ERROR_LINES = 6


@dataclass(frozen=True)
class JobEnd:
    """How a job ended; ``left`` is one that goes on elsewhere, with another driver.

    Args:
        error: what Ray raised.
        signum: the signal that stopped it, if it was one.
    """

    status: Literal["success", "failed", "stopped", "left"]
    result: ray.train.Result | None = None
    error: BaseException | None = None
    signum: signal.Signals | None = None


def find_loss(ending: Ending | None, error: BaseException | None) -> str | None:
    """Which process of its own a run lost, and with it what it could say of the job."""
    if ending is None:
        return "the monitor of the job died"
    if isinstance(error, ray.exceptions.RayActorError) or isinstance(
        getattr(error, "controller_failure", None), ray.exceptions.RayActorError
    ):
        # It dies at once where it cannot write its mark into the storage.
        return "Ray Train's controller of the job died"
    return None


def describe_early_end(ending: Ending) -> str | None:
    """What to say of a job that succeeded before its last step; None if it made all, or has not said how many."""
    if ending.total_train_steps is None or ending.last_step >= ending.total_train_steps:
        return None
    return (
        f"the job ended: success, although only {ending.last_step} of {ending.total_train_steps} steps were made: the "
        "script came to its end by itself, as with early stopping"
    )


def describe_error(ending: Ending, error: BaseException | None, read_last_lines: Callable[[int], Sequence[str]]) -> str:
    """Why a job failed: a worker that died, else the first member's diagnosis, else what Ray or the monitor says.

    Args:
        error: what Ray raised; None if all workers left as they were told.
        read_last_lines: gives what a worker printed at last.
    """
    text = _describe_cause(ending, error, read_last_lines)
    return text if ending.why_over is None else f"{text}\nNot started again: {ending.why_over}."


def _describe_cause(
    ending: Ending, error: BaseException | None, read_last_lines: Callable[[int], Sequence[str]]
) -> str:
    causes = getattr(error, "worker_failures", None) or {}
    for rank in sorted(causes):
        cause = find_cause(causes[rank])
        if isinstance(cause, ray.exceptions.OutOfMemoryError):
            return (
                f"worker {rank} was ended by Ray because the machine's memory was full; other programs count as well.\n"
                "Hint: make room, or set RAY_memory_usage_threshold (0.95) or RAY_memory_monitor_refresh_ms=0 (no such "
                f"end) where Ray is started.\n{_first_lines(str(cause))}"
            )
        if isinstance(cause, ray.exceptions.RayActorError):
            # A worker never dies because of another one, so this comes before what the others report.
            text = f"worker {rank} died: its process was killed, or its machine was lost.\n{_first_lines(str(cause))}"
            return text + describe_last_lines(read_last_lines(rank))
    if ending.failures:
        return ending.failures[0].describe()
    if error is None:
        return ending.text
    for rank in sorted(causes):
        is_own = isinstance(causes[rank], PeriflowRayError)
        return str(causes[rank]) if is_own else f"worker {rank}: {_first_lines(str(causes[rank]))}"
    return _first_lines(str(error))


def _first_lines(text: str) -> str:
    return "\n".join([line for line in text.splitlines() if line.strip()][:_NUM_ERROR_LINES])
