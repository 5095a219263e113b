"""The driver's hand on ``state.json``: status, attempt, message and the heartbeat that shows the driver is alive."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from types import TracebackType

from periflow_ray import jobs
from periflow_ray.errors import DamagedDocumentError, StorageError
from periflow_ray.jobs import ENDED_STATUSES, HEARTBEAT_INTERVAL_S, JobState, JobStatus
from periflow_ray.jobs.attempts import list_attempt_numbers
from periflow_ray.jobs.events import EventWriter
from periflow_ray.jobs.succession import Ownership, leave_to_successor
from periflow_ray.loops import BackgroundLoop, Faults
from periflow_ray.secret_mask import SecretMask
from periflow_ray.store.root import StorageRoot

# What the storage refused is written again after so long; what it took, with the next heartbeat.
RETRY_INTERVAL_S = 1.0
# A job that has ended must be known to have: its driver tries for so long. Ray ends one that was told to stop earlier.
FINAL_STATE_TIMEOUT_S = 300.0
SLOW_WRITE_S = 5.0


class StateKeeper:
    """Knows a job's state, and while it is open, one thread writes it, with its events and heartbeats.

    No call waits for the storage; only the end of ``with`` does, until a final state is written. Any thread may call,
    and so may a signal handler.

    Args:
        driver_id: of this driver, which ends itself when another one was started; None if there can be none.
        final_timeout_s: how long a final state is tried to be written.
    """

    def __init__(
        self,
        root: StorageRoot,
        job_id: int,
        *,
        driver_id: str | None = None,
        final_timeout_s: float = FINAL_STATE_TIMEOUT_S,
    ) -> None:
        self._root = root
        self._job_id = job_id
        self._ownership = Ownership(root, job_id, driver_id)
        self._final_timeout_s = final_timeout_s
        self._events = EventWriter(root, job_id, "driver")
        self._mask = SecretMask()
        self._state, is_damaged = _read_state(root, job_id)
        # Never held during I/O. The writing thread does without it: a signal handler that waits for what is written
        # may have interrupted its holder.
        self._changing = threading.RLock()
        self._unwritten_events: deque[tuple[str, str, int, float]] = deque()
        self._written: JobState | None = None
        self._final_is_written = threading.Event()
        self._final_deadline_s: float | None = None
        self._has_closed = False
        self._next_heartbeat_s = 0.0
        self._last_error = ""
        faults = Faults("writing the job's state", self.note)
        self._loop = BackgroundLoop("heartbeat", self._write, RETRY_INTERVAL_S, acts_at_close=True, faults=faults)
        if is_damaged:
            self.note("the job's state was damaged and is written anew")

    def __enter__(self) -> StateKeeper:
        self._loop.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, SystemExit):
            self.enter_failure(error)
        self.finish()
        self._loop.close()
        self._has_closed = True

    @property
    def status(self) -> JobStatus:
        """The status as it was entered last."""
        return self._state.status

    @property
    def attempt(self) -> int:
        """The newest attempt."""
        return self._state.attempt

    @property
    def message(self) -> str | None:
        """An ended job's message, or what it waits for."""
        return self._state.message

    def hide(self, secrets: Iterable[str]) -> None:
        """From now on these values are ``***`` in every event and message."""
        self._mask = SecretMask(secrets)

    def note(self, text: str) -> None:
        """A sentence for the user that changes nothing."""
        self._tell("note", text, self._state.attempt)

    def enter(self, status: JobStatus, text: str | None, attempt: int | None = None) -> None:
        """Change the status; ``text`` is the event's sentence, and an ended job's message."""
        text = None if text is None else self._mask.apply(text)
        now = time.time()
        has_ended = status in ENDED_STATUSES
        with self._changing:
            if not self._state.has_ended:
                state = dataclasses.replace(
                    self._state,
                    status=status,
                    attempt=self._state.attempt if attempt is None else attempt,
                    started_unix_s=self._state.started_unix_s or (now if status == "running" else None),
                    ended_unix_s=now if has_ended else None,
                    message=text if has_ended else None,
                )
                # The event first: whoever sees the final state finds the log complete.
                self._tell(status, _event_text(status, text), state.attempt)
                self._state = state
        self._loop.wake()

    def enter_failure(self, error: BaseException) -> None:
        """The job has failed because its driver did."""
        self.enter("failed", f"the driver failed: {type(error).__name__}: {error}")

    def note_waiting(self, text: str) -> None:
        """Say what an allocating job waits for; the same sentence only once."""
        text = self._mask.apply(text)
        with self._changing:
            if self._state.has_ended or self._state.message == text:
                return
            self._tell("waiting", text, self._state.attempt)
            self._state = dataclasses.replace(self._state, message=text)
        self._loop.wake()

    def finish(self) -> None:
        """Wait until an entered final state is written, or ``final_timeout_s`` are over, with a word on stderr.

        At the end of ``with`` it is called; so should whoever ends the process without coming there.
        """
        if not self._state.has_ended:
            return
        self._loop.start()
        now_s = time.monotonic()
        if self._final_deadline_s is None:
            self._final_deadline_s = now_s + self._final_timeout_s
        left_s = max(0.0, self._final_deadline_s - now_s)
        if self._final_is_written.wait(min(SLOW_WRITE_S, left_s)):
            return
        trouble = self._last_error or "the storage does not answer"
        if left_s > SLOW_WRITE_S:
            _say(
                f"the final state of job {self._job_id} is not written yet ({trouble}); trying for up to {left_s:.0f} s"
            )
            if self._final_is_written.wait(left_s - SLOW_WRITE_S):
                return
        _say(f"the final state of job {self._job_id}, {self._state.status}, could not be written: {trouble}")

    def _tell(self, kind: str, text: str, attempt: int) -> None:
        self._unwritten_events.append((kind, self._mask.apply(text), attempt, time.time()))
        self._loop.wake()
        if self._has_closed:
            # Of the last messages to people, for example, that they did not arrive.
            self._write_events()

    def _write_events(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                kind, text, attempt, time_unix_s = self._unwritten_events.popleft()
                # It keeps what the storage refuses.
                self._events.write(kind, text, attempt, time_unix_s=time_unix_s)
        self._events.flush()

    def _write(self) -> None:
        """Write what is new, and a heartbeat when it is time; only the loop's thread does."""
        # Before the events are looked at, so that those of this state are among them.
        state = self._state
        now_s = time.monotonic()
        is_due = state is not self._written or not (state.has_ended or now_s < self._next_heartbeat_s)
        if not is_due and not self._unwritten_events:
            return
        try:
            if self._ownership.is_lost():
                leave_to_successor(self._job_id)
            self._write_events()
            if not is_due:
                return
            jobs.write_state(self._root, self._job_id, dataclasses.replace(state, heartbeat_unix_s=time.time()))
        except (OSError, StorageError) as err:  # The next look tries again.
            if str(err) != self._last_error:
                self._last_error = str(err)
                _say(f"the state of job {self._job_id} could not be written: {err}")
            return
        self._last_error = ""
        self._written = state
        self._next_heartbeat_s = now_s + HEARTBEAT_INTERVAL_S
        if state.has_ended:
            self._final_is_written.set()


def _read_state(root: StorageRoot, job_id: int) -> tuple[JobState, bool]:
    """How the job stands, and whether that had to be guessed, because the document is damaged."""
    try:
        return jobs.read_written_state(root, job_id), False
    except DamagedDocumentError as err:
        # It is written anew, and whole: a job needs nothing of what it said.
        _say(str(err))
        return JobState("waiting", attempt=max(list_attempt_numbers(root, job_id), default=0)), True


def _say(text: str) -> None:
    # A signal handler may have interrupted another print, which then refuses this one.
    with contextlib.suppress(Exception):
        print(text, file=sys.stderr, flush=True)


def _event_text(status: JobStatus, text: str | None) -> str:
    if status == "failed":
        # The rest is in the state's message, which whoever follows the log is shown as well.
        lines = (text or "").splitlines()
        return f"the job failed: {lines[0]}" if lines else "the job failed"
    return text or f"the job ended: {status}"
