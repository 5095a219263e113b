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
from typing import Any, NoReturn

import click
from rich.console import Console

from periflow_ray.cli.log_view import LogView
from periflow_ray.cli.main import INTERRUPTED_EXIT_CODE
from periflow_ray.cli.progress import LiveProgress, PlainProgress, ProgressDisplay
from periflow_ray.errors import ClusterError, JobFailedError, NewerFormatError, StorageError
from periflow_ray.jobs import JobProgress, JobState, read_progress, read_record
from periflow_ray.jobs.logs import LogFollower, LogLine
from periflow_ray.store.root import StorageRoot

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
) -> JobState:
    """Print a job's log lines as they come until it has ended and its last line is printed.

    Ctrl-C asks whether to stop the job or leave it running; without a terminal, or without ``ask_on_interrupt``,
    it is left running and the command ends with exit code 130.

    Args:
        console: on standard error, for progress and questions.
        view: which lines, and how they look; by default all, with their node if the job has several.
        num_past_lines: print only this many of the lines that exist already; None for all.
    Returns:
        The final state.
    Raises:
        NotFoundError: there is no such job, or it was deleted meanwhile.
        StorageError, ClusterError, OSError: state or log could not be read for 10 minutes.
        NewerFormatError: a later version writes the job, in a format that this one does not know.
    """
    record = read_record(root, job_id)
    display: ProgressDisplay = LiveProgress(console) if console.is_terminal else PlainProgress(console, job_id)
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
                    _print_lines(lines, view, display)
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


def raise_unless_success(job_id: int, state: JobState) -> None:
    """Turn the end of a job into the exit code of the command that waited for it.

    Raises:
        JobFailedError: it ended in any state but success; the message is its diagnosis.
    """
    if state.status != "success":
        diagnosis = f": {state.message}" if state.message else "."
        raise JobFailedError(f"job {job_id} {state.status}{diagnosis}")


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


def _print_lines(lines: list[LogLine], view: LogView, display: ProgressDisplay) -> None:
    if lines:
        display.hide()
        sys.stdout.write("".join(f"{view.describe(line)}\n" for line in lines))
        sys.stdout.flush()


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
