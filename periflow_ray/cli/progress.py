"""How far a job is: one live line on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console

from periflow_ray.cli.format import format_duration, format_value
from periflow_ray.cli.plain_text import escape_block, escape_cell
from periflow_ray.jobs import JobProgress, JobState

_BAR_LENGTH = 20
PLAIN_INTERVAL_S = 10.0
_PLAIN_FRACTION = 0.1


class ProgressDisplay(Protocol):
    """Where progress goes while log lines are printed."""

    def hide(self) -> None:
        """Make room for log lines."""

    def show(self, state: JobState, progress: JobProgress) -> None:
        """Show how far the job is now."""


def describe_progress(progress: JobProgress) -> str:
    """``120/1000 steps (12 %), 3.2 steps/s, ETA 4m 35s, loss 0.532``; empty before the first step."""
    if not progress.step and not progress.total_train_steps:
        return ""
    total = progress.total_train_steps
    if total and progress.step > total:
        # Began anew after a restart, perhaps, while steps count on.
        parts = [f"{progress.step} steps, {progress.step - total} more than the {total} that pf.init was told"]
    elif total:
        parts = [f"{progress.step}/{total} steps ({100 * progress.step // total} %)"]
    else:
        parts = [f"step {progress.step}"]
    if progress.steps_per_s:
        parts.append(f"{progress.steps_per_s:.3g} steps/s")
        if total and progress.step < total:
            parts.append(f"ETA {format_duration((total - progress.step) / progress.steps_per_s)}")
    loss = next((name for name in ("loss", *progress.metrics) if name in progress.metrics and "loss" in name), None)
    if loss is not None:
        parts.append(f"{loss} {format_value(progress.metrics[loss])}")
    return ", ".join(parts)


class LiveProgress:
    """One line at the bottom of a terminal, redrawn below every new log line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_shown = False

    def hide(self) -> None:
        """Take the line away."""
        if self._is_shown:
            self._console.file.write("\r\x1b[2K")
            self._console.file.flush()
            self._is_shown = False

    def show(self, state: JobState, progress: JobProgress) -> None:
        """Draw the line anew."""
        self.hide()
        text = " ".join(filter(None, [state.status, _build_bar(progress), describe_progress(progress)]))
        if not progress.step and state.message:
            text = f"{state.status}: {state.message}".replace("\n", " ")
        # One column short of the edge: a full line would wrap and could not be taken away.
        self._console.file.write(escape_cell(text)[: self._console.width - 1])
        self._console.file.flush()
        self._is_shown = True


class PlainProgress:
    """A line when the status changes, and at most every 10 s or 10 % for steps."""

    def __init__(self, console: Console, job_id: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._job_id = job_id
        self._clock = clock
        self._status: tuple[str, int, str | None] | None = None
        self._step = 0
        self._shown_s = -PLAIN_INTERVAL_S

    def hide(self) -> None:
        """Nothing to hide: lines stay."""

    def show(self, state: JobState, progress: JobProgress) -> None:
        """Print what has changed enough."""
        status = (state.status, state.attempt, state.message)
        if status != self._status and not state.has_ended:
            attempt = f" (attempt {state.attempt})" if state.attempt > 1 else ""
            message = f": {state.message}" if state.message else ""
            self._print(f"Job ({self._job_id}) {state.status}{attempt}{message}")
        self._status = status
        if progress.step != self._step and self._is_due(state, progress):
            self._print(f"Job ({self._job_id}) {describe_progress(progress)}")
            self._step = progress.step
            self._shown_s = self._clock()

    def _is_due(self, state: JobState, progress: JobProgress) -> bool:
        if state.has_ended or self._clock() - self._shown_s >= PLAIN_INTERVAL_S:
            return True
        total = progress.total_train_steps
        # A step that went back belongs to a new attempt.
        return total is not None and abs(progress.step - self._step) >= _PLAIN_FRACTION * total

    def _print(self, text: str) -> None:
        self._console.file.write(escape_block(text) + "\n")
        self._console.file.flush()


def _build_bar(progress: JobProgress) -> str:
    if not progress.total_train_steps:
        return ""
    num_filled = min(_BAR_LENGTH, _BAR_LENGTH * progress.step // progress.total_train_steps)
    return "█" * num_filled + "░" * (_BAR_LENGTH - num_filled)
