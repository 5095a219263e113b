"""A member's log on its way to the storage root: secrets masked, and written as often as the root can take."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable
from types import TracebackType

from periflow_ray.errors import MASK, StorageError
from periflow_ray.jobs.logs import LogWriter
from periflow_ray.loops import BackgroundLoop, Faults

LOCAL_FLUSH_INTERVAL_S = 0.5
# Each flush to an object store is a request, and rewrites the last segment.
REMOTE_FLUSH_INTERVAL_S = 3.0


class MemberLog:
    """Lines of all that a member runs, from any thread; while it is open, a thread makes them visible to readers.

    ``write`` never waits for the storage.

    Args:
        name: whose lines they are, for messages.
        secrets: values that are replaced by ``***`` wherever they appear.
    """

    def __init__(self, writer: LogWriter, name: str, *, is_local: bool, secrets: Iterable[str] = ()) -> None:
        self._writer = writer
        self._name = name
        self._secrets = [secret for secret in secrets if secret]
        self._interval_s = LOCAL_FLUSH_INTERVAL_S if is_local else REMOTE_FLUSH_INTERVAL_S
        self._lines: list[tuple[int, str]] = []
        self._lock = threading.Lock()
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
        text = self.mask(text)
        with self._lock:
            self._lines.append((int(time.time() * 1000), text))
        return text

    def mask(self, text: str) -> str:
        """A text without the secrets."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text

    def flush(self) -> None:
        """Make everything written so far visible to readers, as far as the storage takes it; never raises."""
        with self._flushing:
            with self._lock:
                lines, self._lines = self._lines, []
            for time_unix_ms, text in lines:
                self._writer.write(text, time_unix_ms)
            try:
                self._writer.flush()
            # Not to ``sys.stderr``, which a function job's worker copies into this very log.
            except (OSError, StorageError) as err:  # The lines stay buffered; the next flush tries again.
                print(f"log lines of {self._name} are delayed: {err}", file=sys.__stderr__)
            except Exception as err:
                self._faults.take(err)
