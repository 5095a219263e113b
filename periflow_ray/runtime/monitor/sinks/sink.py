"""What a metric sink is, and what is known of it before it is opened in the monitor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from periflow_ray.jobs import JobRecord
from periflow_ray.jobs.metrics import Metric
from periflow_ray.plan import JobPlan
from periflow_ray.store.root import StorageRoot


class MetricSink(Protocol):
    """Where metrics of a job go. The recorder keeps a sink's errors from the job and from the other sinks."""

    def record(self, metrics: Sequence[Metric]) -> None:
        """Take in metrics of any ranks. Only remembers: the monitor's event loop calls it."""

    def flush(self) -> None:
        """Make what was recorded visible, or begin to; one thread at a time calls it.

        Raises:
            OSError, StorageError: it is delayed; the next flush has it too.
        """

    def close(self) -> None:
        """Flush, and finish within a few seconds.

        Raises:
            OSError, StorageError: not everything was written.
        """


class SinkPlan(Protocol):
    """A sink that a job is to have; it pickles, because the driver makes it and the monitor opens it."""

    def open(self, root: StorageRoot, job_id: int, on_problem: Callable[[str], None]) -> MetricSink | None:
        """Make the sink, without I/O; None where it has no place, such as event files in a bucket.

        Args:
            on_problem: gets a sentence for the user, once, when metrics do not arrive; from any thread.
        """

    def environment(self, plan: JobPlan) -> Mapping[str, str]:
        """Variables that the user's command gets because of the sink; they may be secrets."""


ChooseSink = Callable[[JobPlan, JobRecord | None, Callable[[str], None]], SinkPlan | None]
"""Whether a job has a sink: from its plan, its record (None if it cannot be read), and who is told of problems."""
