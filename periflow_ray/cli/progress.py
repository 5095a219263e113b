"""How far a job is: one live line on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from rich.cells import set_cell_size
from rich.console import Console

from periflow_ray.cli.format import format_duration, format_value
from periflow_ray.cli.plain_text import escape_block, escape_cell
from periflow_ray.jobs import JobProgress, JobState

_BAR_LENGTH = 20
_MIN_BAR_LENGTH = 5
PLAIN_INTERVAL_S = 10.0
_PLAIN_FRACTION = 0.1


class ProgressDisplay(Protocol):
    """Where progress goes while log lines are printed."""

    def hide(self) -> None:
        """Make room for log lines."""

    def show(self, state: JobState, progress: JobProgress) -> None:
        """Show how far the job is now."""


def describe_progress(progress: JobProgress, unit: str = "steps") -> str:
    """``120/1000 steps (12 %), 3.2 steps/s, ETA 4m 35s, loss 0.532``; empty before the first step."""
    return ", ".join(_describe_parts(progress, unit).values())


def _describe_parts(progress: JobProgress, unit: str) -> dict[str, str]:
    if not progress.step and not progress.total_train_steps:
        return {}
    total = progress.total_train_steps
    if total and progress.step > total:
        # Began anew after a restart, perhaps, while steps count on.
        more = progress.step - total
        parts = {"step": f"{progress.step} steps, {more} more than the {total} that pf.init was told"}
    elif total:
        parts = {"step": f"{progress.step}/{total} {unit} ({100 * progress.step // total} %)"}
    else:
        parts = {"step": f"step {progress.step}"}
    if progress.steps_per_s:
        parts["speed"] = f"{progress.steps_per_s:.3g} steps/s"
        if total and progress.step < total:
            parts["rest"] = f"ETA {format_duration((total - progress.step) / progress.steps_per_s)}"
    loss = next((name for name in ("loss", *progress.metrics) if name in progress.metrics and "loss" in name), None)
    if loss is not None:
        parts["loss"] = f"{loss} {format_value(progress.metrics[loss])}"
    return parts


def describe_first_wait(state: JobState, progress: JobProgress) -> str:
    """What a job does whose command runs and that has made no step; empty for any other."""
    if state.status != "running" or progress.step:
        return ""
    if progress.total_train_steps is None:
        return "no pf.init() yet: the script imports and prepares"
    return "pf.init() was called, and the first step is not done"


class LiveProgress:
    """One line at the bottom of a terminal, redrawn below every new log line.

    Args:
        is_sweep: whether the job is one that counts trials and has no script of its own.
    """

    def __init__(self, console: Console, *, is_sweep: bool = False) -> None:
        self._console = console
        self._is_sweep = is_sweep
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
        # One column short of the edge: a full line would wrap and could not be taken away.
        limit = self._console.width - 1
        waits_for = state.message or ("" if self._is_sweep else describe_first_wait(state, progress))
        if not progress.step and waits_for:
            text = f"{state.status}: {waits_for}".replace("\n", " ")
        else:
            text = _fit_line(state, progress, limit, _unit_of(self._is_sweep))
        self._console.file.write(set_cell_size(escape_cell(text), limit).rstrip())
        self._console.file.flush()
        self._is_shown = True


class PlainProgress:
    """A line when the status changes, at most every 10 s or 10 % for steps, and after 10 s without the first one."""

    def __init__(
        self,
        console: Console,
        job_id: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        is_sweep: bool = False,
    ) -> None:
        self._console = console
        self._job_id = job_id
        self._clock = clock
        self._status: tuple[str, int, str | None] | None = None
        self._step = 0
        self._shown_s = -PLAIN_INTERVAL_S
        self._is_sweep = is_sweep
        self._waiting_for = ""
        self._waiting_since_s = 0.0

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
        if not self._is_sweep:
            self._show_first_wait(describe_first_wait(state, progress))
        if progress.step != self._step and self._is_due(state, progress):
            self._print(f"Job ({self._job_id}) {describe_progress(progress, _unit_of(self._is_sweep))}")
            self._step = progress.step
            self._shown_s = self._clock()

    def _show_first_wait(self, waiting_for: str) -> None:
        if waiting_for != self._waiting_for:
            self._waiting_for, self._waiting_since_s = waiting_for, self._clock()
        if waiting_for and self._clock() - self._waiting_since_s >= PLAIN_INTERVAL_S:
            self._print(f"Job ({self._job_id}) {waiting_for}")
            self._waiting_since_s = float("inf")

    def _is_due(self, state: JobState, progress: JobProgress) -> bool:
        if state.has_ended or self._clock() - self._shown_s >= PLAIN_INTERVAL_S:
            return True
        total = progress.total_train_steps
        # A step that went back belongs to a new attempt.
        return total is not None and abs(progress.step - self._step) >= _PLAIN_FRACTION * total

    def _print(self, text: str) -> None:
        self._console.file.write(escape_block(text) + "\n")
        self._console.file.flush()


def _unit_of(is_sweep: bool) -> str:
    return "trials" if is_sweep else "steps"


def _fit_line(state: JobState, progress: JobProgress, limit: int, unit: str) -> str:
    """Status, bar and progress in at most this many columns: the bar becomes short and goes first, the loss last."""
    parts = _describe_parts(progress, unit)
    text = ", ".join(parts.values())
    for name in ("speed", "rest"):
        if len(state.status) + 1 + len(text) > limit:
            parts.pop(name, None)
            text = ", ".join(parts.values())
    bar = _build_bar(progress, min(_BAR_LENGTH, limit - len(state.status) - len(text) - 2))
    return " ".join(filter(None, [state.status, bar, text]))


def _build_bar(progress: JobProgress, length: int) -> str:
    if not progress.total_train_steps or length < _MIN_BAR_LENGTH:
        return ""
    num_filled = min(length, length * progress.step // progress.total_train_steps)
    return "█" * num_filled + "░" * (length - num_filled)
