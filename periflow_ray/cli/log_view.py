"""Which of a job's log lines are shown, and how a line looks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from periflow_ray.cli.plain_text import escape_line
from periflow_ray.jobs.logs import LogLine


@dataclass(frozen=True)
class LogView:
    """The part of a log that a reader asked to see.

    Args:
        node_ranks: lines of these nodes only, without the job's own; None for everything.
        content: only lines that contain this text.
        shows_node: whether a node's line names its node. The job's own lines always start with ``[job]``.
        shows_time: whether lines start with their local time.
    """

    node_ranks: frozenset[int] | None = None
    content: str | None = None
    shows_node: bool = False
    shows_time: bool = False

    def selects(self, line: LogLine) -> bool:
        """Whether the line is shown."""
        if self.node_ranks is not None and line.node_rank not in self.node_ranks:
            return False
        return self.content is None or self.content in line.text

    def describe(self, line: LogLine) -> str:
        """The line as it is shown, without its last newline; it keeps its colours, and no other control character."""
        stamp = ""
        if self.shows_time:
            moment = datetime.fromtimestamp(line.time_unix_ms / 1000).astimezone()
            stamp = moment.isoformat(timespec="milliseconds") + " "
        if line.node_rank is None:
            mark = f"{stamp}[job] "
        else:
            mark = f"{stamp}[node {line.node_rank}] " if self.shows_node else stamp
        # The job's own line may be a diagnosis of several lines.
        return mark + escape_line(line.text).replace("\n", f"\n{mark}")
