"""Where a job's metrics go: the storage root, TensorBoard, services. A new sink is a file here and a row in SINKS."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from periflow_ray.jobs import JobRecord
from periflow_ray.loops import describe_error, tell
from periflow_ray.plan import JobPlan
from periflow_ray.runtime.monitor.sinks.sink import ChooseSink, MetricSink, SinkPlan
from periflow_ray.runtime.monitor.sinks.stored import StoredMetrics
from periflow_ray.runtime.monitor.sinks.tensorboard import TensorBoardFiles
from periflow_ray.runtime.monitor.sinks.wandb import read_wandb_run
from periflow_ray.store.root import StorageRoot

SINKS: tuple[ChooseSink, ...] = (
    lambda plan, record, on_problem: StoredMetrics(),
    lambda plan, record, on_problem: TensorBoardFiles(),
    read_wandb_run,
)
# Those of a job that has no template.
DEFAULT_SINKS: tuple[SinkPlan, ...] = (StoredMetrics(), TensorBoardFiles())

__all__ = ["DEFAULT_SINKS", "SINKS", "MetricSink", "SinkPlan", "open_sinks", "plan_sinks", "sink_environment"]


def plan_sinks(plan: JobPlan, record: JobRecord | None, on_problem: Callable[[str], None]) -> tuple[SinkPlan, ...]:
    """The sinks of a job; credentials are read from this machine, and one that cannot be used is a problem to tell.

    Args:
        record: None if it cannot be read.
    """
    chosen = (choose(plan, record, on_problem) for choose in SINKS)
    return tuple(sink for sink in chosen if sink is not None)


def sink_environment(sinks: Sequence[SinkPlan], plan: JobPlan) -> dict[str, str]:
    """Variables that the user's command gets because of the sinks; they may be secrets."""
    return {name: value for sink in sinks for name, value in sink.environment(plan).items()}


def open_sinks(
    plans: Sequence[SinkPlan], root: StorageRoot, job_id: int, on_problem: Callable[[str], None]
) -> list[MetricSink]:
    """The sinks that have a place here; one that fails is told of and left out."""
    sinks: list[MetricSink] = []
    for plan in plans:
        try:
            sink = plan.open(root, job_id, on_problem)
        except Exception as err:
            tell(on_problem, f"{type(plan).__name__} gets no metrics: {describe_error(err)}.")
            continue
        if sink is not None:
            sinks.append(sink)
    return sinks
