"""A member's log and notes on their way to the storage root: without secrets, and as often as the root can take."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Protocol

from periflow_ray.errors import StorageError
from periflow_ray.jobs.events import EventWriter
from periflow_ray.jobs.logs import LogWriter
from periflow_ray.loops import BackgroundLoop, Faults
from periflow_ray.runtime.member.line_buffer import LineBuffer
from periflow_ray.secret_mask import SecretMask

LOCAL_FLUSH_INTERVAL_S = 0.5
# Each flush to an object store is a request, and rewrites the last segment.
REMOTE_FLUSH_INTERVAL_S = 3.0


class Log(Protocol):
    """What a member does with its log, from any thread."""

    @property
    def mask(self) -> SecretMask:
        """What hides the secrets."""

    def write(self, text: str) -> object:
        """Add a line."""

    def note(self, text: str, attempt: int = 0) -> None:
        """A sentence that the user should read, as an event of the job."""

    def flush(self) -> object:
        """Make everything written so far visible to readers, as far as the storage takes it; never raises."""


class MemberLog:
    """Lines of all that a member runs, and its notes, from any thread; while it is open, a thread makes them visible.

    ``write`` and ``note`` never wait for the storage. What the storage does not take in time is kept within bounds:
    lines in the middle are dropped, the log says how many, and one note says that it does.

    Args:
        name: whose lines they are, for messages.
        secrets: values that are replaced by ``***`` wherever they appear.
        events: takes the member's notes; None where nobody reads them.
        buffer: where lines wait for the storage.
    """

    def __init__(
        self,
        writer: LogWriter,
        name: str,
        *,
        is_local: bool,
        secrets: Iterable[str] = (),
        events: EventWriter | None = None,
        buffer: LineBuffer | None = None,
    ) -> None:
        self._writer = writer
        self._name = name
        self.mask = SecretMask(secrets)
        """What hides the secrets."""
        self._events = events
        self._noted: set[str] = set()
        self._interval_s = LOCAL_FLUSH_INTERVAL_S if is_local else REMOTE_FLUSH_INTERVAL_S
        self._buffer = buffer or LineBuffer()
        self._is_refused = False
        # Held during storage I/O, by flushes alone.
        self._flushing = threading.Lock()
        self._faults = Faults(f"the log of {name}", write_trace=lambda text: print(text, file=sys.__stderr__))
        self._loop = BackgroundLoop("log-flush", self.flush, self._interval_s, faults=self._faults)

    def __enter__(self) -> MemberLog:
        self._loop.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.close()
        self.flush()

    def write(self, text: str) -> str:
        """Add a line; returns it as it was written."""
        text = self.mask.apply(text)
        if self._buffer.add((int(time.time() * 1000), text)):
            self._flush_soon()
        return text

    def note(self, text: str, attempt: int = 0) -> None:
        """A sentence that the user should read, as an event of the job."""
        if self._events is not None:
            self._events.add("note", self.mask.apply(text), attempt)
            self._flush_soon()

    def flush(self) -> bool:
        """Make everything written so far visible to readers, as far as the storage takes it; never raises.

        Returns:
            Whether it took everything.
        """
        with self._flushing:
            is_refused, self._is_refused = self._is_refused, True
            try:
                # What was refused before comes first, so that the writer never holds more than the buffer did.
                self._writer.flush()
                self._move_lines()
                self._writer.flush()
                if self._writer.has_deleted:
                    self._note_once(f"lines in the middle of the log of {self._name}, longer than 2 GiB, are deleted")
                if self._events is not None:
                    self._events.publish()
                self._is_refused = False
            # Not to ``sys.stderr``, which a function job's worker copies into this very log.
            except (OSError, StorageError) as err:  # The lines stay buffered; the next flush tries again.
                if not is_refused:
                    print(f"log lines of {self._name} are delayed: {err}", file=sys.__stderr__)
            except Exception as err:
                self._faults.take(err)
            return not self._is_refused

    def _flush_soon(self) -> None:
        # A storage that refuses is not asked again before the interval is over.
        if not self._is_refused:
            self._loop.wake()

    def _move_lines(self) -> None:
        taken = self._buffer.take()
        for time_unix_ms, text in taken.first:
            self._writer.write(text, time_unix_ms)
        if taken.num_dropped:
            missing = f"[{taken.num_dropped:,} lines are missing here: the storage did not take them in time]"
            self._writer.write(missing, taken.last[0][0])
            self._note_once(
                f"lines are missing in the log of {self._name}, because the storage did not take them in time; the log "
                "says where, and how many"
            )
        for time_unix_ms, text in taken.last:
            self._writer.write(text, time_unix_ms)

    def _note_once(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self.note(text)
