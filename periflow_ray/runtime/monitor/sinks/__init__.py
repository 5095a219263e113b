"""Where a job's metrics go: the storage root, TensorBoard, services. A new sink is a file here and a row in SINKS."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from periflow_ray.jobs import JobRecord
from periflow_ray.loops import describe_error, tell
from periflow_ray.runtime.monitor.sinks.sink import ChooseSink, MetricSink, SinkPlan
from periflow_ray.runtime.monitor.sinks.stored import StoredMetrics
from periflow_ray.runtime.monitor.sinks.tensorboard import TensorBoardFiles
from periflow_ray.runtime.monitor.sinks.wandb import WandbRun, read_wandb_run
from periflow_ray.secret_mask import looks_secret
from periflow_ray.store.root import StorageRoot

if TYPE_CHECKING:
    from periflow_ray.spec.models import PluginSpec

SINKS: tuple[ChooseSink, ...] = (
    lambda plugin, record, env, on_problem: StoredMetrics(),
    lambda plugin, record, env, on_problem: TensorBoardFiles(),
    read_wandb_run,
)
# Those of a job without plugins.
DEFAULT_SINKS: tuple[SinkPlan, ...] = (StoredMetrics(), TensorBoardFiles())

__all__ = [
    "DEFAULT_SINKS",
    "SINKS",
    "MetricSink",
    "SinkPlan",
    "SinkVariables",
    "open_sinks",
    "plan_sinks",
    "sink_variables",
    "with_hparams",
]


@dataclass(frozen=True)
class SinkVariables:
    """Environment variables that the user's code gets because of the sinks.

    Args:
        settings: those that may be seen.
        secrets: those whose values the job's log hides.
    """

    settings: Mapping[str, str]
    secrets: Mapping[str, str] = field(repr=False)


def plan_sinks(
    plugin: PluginSpec | None, record: JobRecord, env: Mapping[str, str], on_problem: Callable[[str], None]
) -> tuple[SinkPlan, ...]:
    """The sinks of a job; credentials are read from this machine.

    Args:
        env: variables that the user sets for the job; some of them are settings of a sink.
        on_problem: told of a credential that cannot be used; the job does without the sink.
    """
    chosen = (choose(plugin, record, env, on_problem) for choose in SINKS)
    return tuple(sink for sink in chosen if sink is not None)


def with_hparams(sinks: Sequence[SinkPlan], hparams: Mapping[str, Any], metric: str) -> tuple[SinkPlan, ...]:
    """The sinks of a trial, which those that have a place for it tell of its parameters.

    Args:
        metric: by which trials are compared.
    """

    def told(sink: SinkPlan) -> SinkPlan:
        match sink:
            case TensorBoardFiles():
                return TensorBoardFiles(hparams, metric)
            case WandbRun():
                return dataclasses.replace(sink, hparams=hparams)
        return sink

    return tuple(map(told, sinks))


def sink_variables(sinks: Sequence[SinkPlan], given: Collection[str]) -> SinkVariables:
    """Variables that the user's code gets because of the sinks, but for those that the user sets.

    Args:
        given: names of the variables that the user sets for the job.
    """
    variables = {name: value for sink in sinks for name, value in sink.environment().items() if name not in given}
    return SinkVariables(
        settings={name: value for name, value in variables.items() if not looks_secret(name)},
        secrets={name: value for name, value in variables.items() if looks_secret(name)},
    )


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
