"""What happened to a job and when, in plain words: submitted, node joined, checkpoint committed, failed."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from periflow_ray.bounded_text import shorten
from periflow_ray.errors import DamagedDocumentError, StorageError
from periflow_ray.store.documents import describe_key, dump_document, parse_document
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.segments import SegmentWriter, read_lines

# A sentence with a diagnosis of 20 lines; more than this is no text for people.
MAX_TEXT_CHARS = 20_000
# As earlier versions stored them. A notice is now a cloud's word that a machine goes, and nothing else.
_FORMER_KINDS = {"notice": "note"}


@dataclass(frozen=True)
class Event:
    """``kind`` is one word for programs, ``text`` a sentence for people."""

    time_unix_s: float
    kind: str
    text: str
    attempt: int = 0


class EventWriter:
    """Adds a job's events; each is visible at once. One per process: ``writer_name`` keeps processes apart."""

    def __init__(self, root: StorageRoot, job_id: int, writer_name: str) -> None:
        self._segments = SegmentWriter(root, job_key(job_id, "events", writer_name))

    def write(self, kind: str, text: str, attempt: int = 0, *, time_unix_s: float | None = None) -> None:
        """Record an event, of now or of ``time_unix_s``; where the storage fails, it is told with the next one."""
        self.add(kind, text, attempt, time_unix_s=time_unix_s)
        self._try_to_flush(f"an event is delayed ({shorten(text, MAX_TEXT_CHARS)})")

    def add(self, kind: str, text: str, attempt: int = 0, *, time_unix_s: float | None = None) -> None:
        """Record an event that is visible after ``publish``; never waits for the storage."""
        text = shorten(text, MAX_TEXT_CHARS)
        event = Event(time.time() if time_unix_s is None else time_unix_s, kind, text, attempt)
        self._segments.append(dump_document(event, indent=None) + b"\n")

    def publish(self) -> None:
        """Make visible what was added.

        Raises:
            OSError, StorageError: the storage refused; the next call tries again.
        """
        self._segments.flush()

    def flush(self) -> None:
        """Try again to make visible what the storage refused."""
        self._try_to_flush("events are delayed")

    def _try_to_flush(self, trouble: str) -> None:
        try:
            self._segments.flush()
        except (OSError, StorageError) as err:  # An event is never worth a job.
            print(f"{trouble}: {err}", file=sys.stderr)


def read_events(root: StorageRoot, job_id: int) -> list[Event]:
    """All events of a job in time order.

    Raises:
        NewerFormatError: see ``parse_events``.
    """
    events: list[Event] = []
    for name in root.list_names(job_key(job_id, "events")):
        prefix = job_key(job_id, "events", name)
        events += parse_events(read_lines(root, prefix), describe_key(root, prefix))
    return sorted(events, key=lambda event: event.time_unix_s)


def parse_events(lines: Iterable[bytes], where: str) -> Iterator[Event]:
    """Events from their stored lines; one that is damaged is left out.

    Args:
        where: how messages name the lines.
    Raises:
        NewerFormatError: a later version wrote them, in a format that this one does not know.
    """
    for line in lines:
        with contextlib.suppress(DamagedDocumentError):
            event = parse_document(Event, line, where)
            yield dataclasses.replace(event, kind=_FORMER_KINDS.get(event.kind, event.kind))
