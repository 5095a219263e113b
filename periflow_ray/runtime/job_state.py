"""The driver's hand on ``state.json``: status, attempt, message and the heartbeat that shows the driver is alive."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from types import TracebackType

from periflow_ray import jobs
from periflow_ray.errors import StorageError
from periflow_ray.jobs import ENDED_STATUSES, HEARTBEAT_INTERVAL_S, JobStatus
from periflow_ray.jobs.events import EventWriter
from periflow_ray.store.root import StorageRoot


class StateKeeper:
    """Writes a job's state; while it is open, a thread renews the heartbeat."""

    def __init__(self, root: StorageRoot, job_id: int) -> None:
        self._root = root
        self._job_id = job_id
        self._events = EventWriter(root, job_id, "driver")
        self._state = jobs.read_state(root, job_id)
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> StateKeeper:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        if error is not None and not isinstance(error, SystemExit):
            self.enter("failed", f"the driver failed: {type(error).__name__}: {error}")

    @property
    def status(self) -> JobStatus:
        """The status as it was written last."""
        return self._state.status

    @property
    def attempt(self) -> int:
        """The newest attempt."""
        return self._state.attempt

    @property
    def message(self) -> str | None:
        """An ended job's message, or what it waits for."""
        return self._state.message

    def note(self, text: str) -> None:
        """A sentence for the user that changes nothing."""
        self._events.write("notice", text, self._state.attempt)

    def enter(self, status: JobStatus, text: str | None, attempt: int | None = None) -> None:
        """Change the status; ``text`` is the event's sentence, and an ended job's message."""
        now = time.time()
        with self._lock:
            if self._state.has_ended:
                return
            has_ended = status in ENDED_STATUSES
            self._state = dataclasses.replace(
                self._state,
                status=status,
                attempt=self._state.attempt if attempt is None else attempt,
                started_unix_s=self._state.started_unix_s or (now if status == "running" else None),
                ended_unix_s=now if has_ended else None,
                message=text if has_ended else None,
            )
            # The event first: whoever sees the final state finds the log complete.
            self._events.write(status, _event_text(status, text), self._state.attempt)
            self._write()

    def note_waiting(self, text: str) -> None:
        """Say what an allocating job waits for; the same sentence only once."""
        with self._lock:
            if self._state.has_ended or self._state.message == text:
                return
            self._state = dataclasses.replace(self._state, message=text)
            self._events.write("waiting", text, self._state.attempt)
            self._write()

    def _beat(self) -> None:
        while not self._closing.wait(HEARTBEAT_INTERVAL_S):
            with self._lock:
                if not self._state.has_ended:
                    self._write()

    def _write(self) -> None:
        self._state = dataclasses.replace(self._state, heartbeat_unix_s=time.time())
        try:
            jobs.write_state(self._root, self._job_id, self._state)
        except (OSError, StorageError) as err:  # The next heartbeat tries again.
            print(f"the state of job {self._job_id} could not be written: {err}", file=sys.stderr)


def _event_text(status: JobStatus, text: str | None) -> str:
    if status == "failed":
        # The rest is in the state's message, which whoever follows the log is shown as well.
        return f"the job failed: {(text or '').splitlines()[0]}"
    return text or f"the job ended: {status}"
