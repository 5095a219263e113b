"""Log lines of a job; the job's own lines are its events.

logs/node-<node rank>                a node of a command job
logs/node-<node rank>-rank-<rank>    a rank of a function job, because each stream has one writer

A stored line is ``<unix milliseconds> <text>``, so that plain ``grep`` works on a local storage root.
"""

from __future__ import annotations

import heapq
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from periflow_ray.jobs.events import Event, parse_events, read_events
from periflow_ray.store.documents import describe_key
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.segments import SEGMENT_BYTES, SegmentFollower, SegmentWriter, iterate_lines

# Of each stream. More than this nobody reads, and a script that prints without end must not fill the storage.
MAX_LOG_BYTES = 2 << 30
_STREAM_NAME = re.compile(r"node-(?P<node_rank>\d+)(-rank-(?P<rank>\d+))?")


@dataclass(frozen=True)
class LogLine:
    """One line; ``node_rank`` is None for the job's own lines."""

    time_unix_ms: int
    node_rank: int | None
    text: str


class LogWriter:
    """Writes one node's lines, or one rank's."""

    def __init__(self, root: StorageRoot, job_id: int, node_rank: int, rank: int | None = None) -> None:
        name = f"node-{node_rank}" if rank is None else f"node-{node_rank}-rank-{rank}"
        self._segments = SegmentWriter(root, job_key(job_id, "logs", name), max_segments=MAX_LOG_BYTES // SEGMENT_BYTES)

    @property
    def has_deleted(self) -> bool:
        """Whether the log has become so long that lines in its middle are deleted."""
        return self._segments.has_deleted

    def write(self, text: str, time_unix_ms: int | None = None) -> None:
        """Add a line (several, if the text has newlines); visible after ``flush``."""
        stamp = int(time.time() * 1000) if time_unix_ms is None else time_unix_ms
        encoded = "".join(f"{stamp} {line}\n" for line in text.split("\n"))
        self._segments.append(encoded.encode("utf-8", "replace"))

    def flush(self) -> None:
        """Make the lines visible to readers."""
        self._segments.flush()


class LogFollower:
    """Reads a job's lines as they come, all streams merged in time order per call.

    Args:
        num_past_lines: of the lines that are there at the first call, at least the last ones of each stream, so many;
            None for all.
    """

    def __init__(self, root: StorageRoot, job_id: int, num_past_lines: int | None = None) -> None:
        self._root = root
        self._job_id = job_id
        self._num_past_lines = num_past_lines
        self._nodes: dict[str, SegmentFollower] = {}
        self._own: dict[str, SegmentFollower] = {}
        self._read: list[LogLine] = []

    def read_new(self) -> list[LogLine]:
        """The lines since the last call."""
        # Collected on self: if reading one stream fails, the lines of the others are in the next call's answer.
        for name, stream in self._find_streams("logs", self._nodes):
            if not (matched := _STREAM_NAME.fullmatch(name)):
                continue  # Not the product's.
            node_rank = int(matched["node_rank"])
            lines = (_parse_line(line, node_rank) for line in stream.read_new())
            self._read += [line for line in lines if line is not None]
        for _, stream in self._find_streams("events", self._own):
            events = parse_events(stream.read_new(), describe_key(self._root, stream.prefix))
            self._read += map(_own_line, events)
        # A stream that begins later is new as a whole.
        self._num_past_lines = None
        found, self._read = self._read, []
        return sorted(found, key=lambda line: line.time_unix_ms)

    def _find_streams(self, kind: str, known: dict[str, SegmentFollower]) -> Iterable[tuple[str, SegmentFollower]]:
        prefix = job_key(self._job_id, kind)
        for name in self._root.list_names(prefix):
            if name not in known:
                known[name] = SegmentFollower(self._root, f"{prefix}/{name}", self._num_past_lines)
        return known.items()


def iterate_logs(root: StorageRoot, job_id: int) -> Iterator[LogLine]:
    """All lines of a job in time order, of which few are in memory at a time."""
    prefix = job_key(job_id, "logs")
    streams = [
        _iterate_stream(root, f"{prefix}/{name}", int(matched["node_rank"]))
        for name in root.list_names(prefix)
        if (matched := _STREAM_NAME.fullmatch(name))
    ]
    own = (_own_line(event) for event in read_events(root, job_id))
    return heapq.merge(*streams, own, key=lambda line: line.time_unix_ms)


def read_logs(root: StorageRoot, job_id: int, num_last_lines: int | None = None) -> list[LogLine]:
    """Lines of a job in time order: all of them, or at least the last so many, and little more is read."""
    return LogFollower(root, job_id, num_last_lines).read_new()


def read_last_lines(root: StorageRoot, job_id: int, rank: int, num_lines: int) -> list[str]:
    """The last lines of a function job's rank, at most so many, from whichever node it was on."""
    prefix = job_key(job_id, "logs")
    found = []
    for name in root.list_names(prefix):
        if (matched := _STREAM_NAME.fullmatch(name)) and matched["rank"] == str(rank):
            lines = SegmentFollower(root, f"{prefix}/{name}", num_lines).read_new()
            found += [line for stored in lines if (line := _parse_line(stored, int(matched["node_rank"])))]
    return [line.text for line in sorted(found, key=lambda line: line.time_unix_ms)[-num_lines:]]


def _iterate_stream(root: StorageRoot, prefix: str, node_rank: int) -> Iterator[LogLine]:
    for line in iterate_lines(root, prefix):
        parsed = _parse_line(line, node_rank)
        if parsed is not None:
            yield parsed


def _own_line(event: Event) -> LogLine:
    return LogLine(int(event.time_unix_s * 1000), None, event.text)


def _parse_line(line: bytes, node_rank: int) -> LogLine | None:
    """None if the line is damaged."""
    stamp, _, text = line.decode("utf-8", "replace").partition(" ")
    try:
        return LogLine(int(stamp), node_rank, text)
    except ValueError:
        return None
