"""Follow a job on this terminal until it ends: its log on standard output, its progress on standard error."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn, TextIO

import click
from rich.console import Console

from periflow_ray.cli.log_view import LogView
from periflow_ray.cli.main import INTERRUPTED_EXIT_CODE
from periflow_ray.cli.output import is_drawable, tell_left_out
from periflow_ray.cli.progress import LiveProgress, PlainProgress, ProgressDisplay
from periflow_ray.errors import ClusterError, JobFailedError, JobStoppedError, NewerFormatError, StorageError
from periflow_ray.jobs import JobProgress, JobState, read_progress, read_record
from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.jobs.logs import LogFollower, LogLine
from periflow_ray.store.checkpoints import latest_committed
from periflow_ray.store.root import StorageRoot
from periflow_ray.sweeps.documents import has_sweep

POLL_INTERVAL_S = 0.25
# A network may be away for a while; when the storage root cannot be read for this long, following ends.
GIVE_UP_AFTER_S = 600.0
_MAX_RETRY_INTERVAL_S = 5.0


def follow_job(
    root: StorageRoot,
    job_id: int,
    *,
    console: Console,
    ask_on_interrupt: bool = True,
    view: LogView | None = None,
    num_past_lines: int | None = None,
    logs_to_stderr: bool = False,
) -> JobState:
    """Print a job's log lines as they come until it has ended and its last line is printed.

    Ctrl-C asks whether to stop the job or leave it running; without a terminal, or without ``ask_on_interrupt``,
    it is left running and the command ends with exit code 130.

    Args:
        console: on standard error, for progress and questions.
        view: which lines, and how they look; by default all, with their node if the job has several.
        num_past_lines: print only this many of the lines that exist already; None for all.
        logs_to_stderr: leave standard output to something else.
    Returns:
        The final state.
    Raises:
        NotFoundError: there is no such job, or it was deleted meanwhile.
        StorageError, ClusterError, OSError: state or log could not be read for 10 minutes.
        NewerFormatError: a later version writes the job, in a format that this one does not know.
    """
    record = read_record(root, job_id)
    # The trials of a sweep are the ones with scripts.
    is_sweep = has_sweep(root, job_id)
    display: ProgressDisplay = (
        LiveProgress(console, is_sweep=is_sweep)
        if is_drawable(console)
        else PlainProgress(console, job_id, is_sweep=is_sweep)
    )
    view = view or LogView(shows_node=record.num_nodes > 1)
    # Lines with a certain text may be anywhere.
    logs = LogFollower(root, job_id, num_past_lines if view.content is None else None)
    reader = _Reader(root, job_id, logs, console, display)
    num_lines_left_out = num_past_lines
    with _collected_interrupts() as interrupts:
        try:
            while True:
                news = reader.read()
                if news is not None:
                    lines = [line for line in news.lines if view.selects(line)]
                    if num_lines_left_out is not None:
                        lines = lines[max(0, len(lines) - num_lines_left_out) :]
                        num_lines_left_out = None
                    _print_lines(lines, view, display, sys.stderr if logs_to_stderr else sys.stdout)
                    display.show(news.state, news.progress)
                    if news.state.has_ended:
                        return news.state
                if interrupts:
                    interrupts.clear()
                    display.hide()
                    _handle_interrupt(root, job_id, console, ask_on_interrupt)
                time.sleep(reader.interval_s)
        except KeyboardInterrupt:
            # A second Ctrl-C while something took long.
            display.hide()
            _leave_running(job_id, console)
        finally:
            display.hide()


def raise_unless_success(root: StorageRoot, job_id: int, state: JobState) -> None:
    """Turn the end of a job into the exit code of the command that waited for it.

    Raises:
        JobStoppedError: it was stopped, which is what somebody wanted.
        JobFailedError: it ended in any other state but success; the message is its diagnosis.
    """
    if state.status == "stopped":
        raise JobStoppedError(f"Job ({job_id}) was stopped; {describe_saved(root, job_id)}.\n{_go_on(root, job_id)}")
    if state.status != "success":
        diagnosis = f": {state.message}" if state.message else "."
        raise JobFailedError(f"job {job_id} {state.status}{diagnosis}")


def describe_stop(root: StorageRoot, job_id: int, state: JobState) -> str:
    """How a job that was asked to stop ended, what of it is saved, and how it goes on."""
    text = f"Job ({job_id}) ended: {state.status}; {describe_saved(root, job_id)}."
    return text if state.status == "success" else f"{text}\n{_go_on(root, job_id)}"


def _go_on(root: StorageRoot, job_id: int) -> str:
    if read_record(root, job_id).ray_submission_id is None:
        return f"Go on with it: TorchTrainer(..., resume={job_id})"
    return f"Go on with it: periflow-ray job resume {job_id}"


def describe_saved(root: StorageRoot, job_id: int) -> str:
    """What of a job that was stopped is in a checkpoint."""
    newest = latest_committed(root, job_id)
    if newest is None:
        return "it has no checkpoint"
    attempts = read_attempts(root, job_id, tell_left_out)
    save = attempts[-1].save if attempts and attempts[-1].cause == "stop" else None
    if save is not None and save.step is not None:
        return f"saved at step {save.step}"
    text = f"its newest checkpoint is of step {newest.step}"
    return text if save is None else f"nothing was saved in time, {text}"


@dataclass(frozen=True)
class _News:
    state: JobState
    progress: JobProgress
    lines: list[LogLine]


class _Reader:
    """Reads what is new about a job, and outlives a storage root that is away for a while."""

    def __init__(
        self, root: StorageRoot, job_id: int, logs: LogFollower, console: Console, display: ProgressDisplay
    ) -> None:
        self._root = root
        self._job_id = job_id
        self._logs = logs
        self._console = console
        self._display = display
        self._failing_since_s: float | None = None
        self.interval_s = POLL_INTERVAL_S

    def read(self) -> _News | None:
        """The news since the last call; None when they could not be read this time."""
        from periflow_ray.submit.jobs import settle_state

        try:
            # The state first: the last lines are written before the final state is.
            state = settle_state(self._root, self._job_id)
            progress = read_progress(self._root, self._job_id)
            lines = self._logs.read_new()
        except NewerFormatError:
            raise
        except (OSError, StorageError, ClusterError) as err:
            self._note_failure(err)
            return None
        self._failing_since_s = None
        self.interval_s = POLL_INTERVAL_S
        return _News(state, progress, lines)

    def _note_failure(self, err: Exception) -> None:
        if self._failing_since_s is None:
            self._failing_since_s = time.monotonic()
            self._display.hide()
            self._console.print(f"Job ({self._job_id}) cannot be read just now, trying again: {err}")
        elif time.monotonic() - self._failing_since_s > GIVE_UP_AFTER_S:
            raise err
        self.interval_s = min(2 * self.interval_s, _MAX_RETRY_INTERVAL_S)


class _FirstLetters(click.Choice[str]):
    """A choice that also takes the beginning of a word."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        matching = [choice for choice in self.choices if value and choice.startswith(str(value).lower())]
        return super().convert(matching[0] if len(matching) == 1 else value, param, ctx)


def _print_lines(lines: list[LogLine], view: LogView, display: ProgressDisplay, out: TextIO) -> None:
    if lines:
        display.hide()
        out.write("".join(f"{view.describe(line)}\n" for line in lines))
        out.flush()


@contextmanager
def _collected_interrupts() -> Iterator[list[int]]:
    """Collects Ctrl-C instead of raising it anywhere, so that no line is lost; a second one does raise."""
    collected: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield collected
        return

    def collect(number: int, frame: FrameType | None) -> None:
        if collected:
            raise KeyboardInterrupt
        collected.append(number)

    before = signal.signal(signal.SIGINT, collect)
    try:
        yield collected
    finally:
        signal.signal(signal.SIGINT, before)


def _handle_interrupt(root: StorageRoot, job_id: int, console: Console, ask_on_interrupt: bool) -> None:
    if not (ask_on_interrupt and sys.stdin.isatty() and console.is_terminal):
        _leave_running(job_id, console)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        answer = click.prompt(
            f"\nStop job {job_id}, leave it running, or go on following it",
            type=_FirstLetters(["stop", "leave", "follow"]),
            default="leave",
            err=True,
        )
        if answer == "stop":
            from periflow_ray.submit.stop import ask_to_stop

            # Its last lines, the save's among them, are followed as all others.
            console.print(f"Stopping job ({job_id}) with a save. Without: periflow-ray job stop {job_id} --now")
            ask_to_stop(root, job_id)
    except (click.Abort, KeyboardInterrupt):
        answer = "leave"
    finally:
        signal.signal(signal.SIGINT, before)
    if answer == "leave":
        _leave_running(job_id, console)


def _leave_running(job_id: int, console: Console) -> NoReturn:
    console.print(f"Job ({job_id}) keeps running.")
    console.print(f"Follow it again: periflow-ray job log {job_id} -f    Stop it: periflow-ray job stop {job_id}")
    raise click.exceptions.Exit(INTERRUPTED_EXIT_CODE)
