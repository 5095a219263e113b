"""How Ray Tune is set up for a sweep, and the ends of its trials in words."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any

from ray import tune

from periflow_ray.plan import JobPlan
from periflow_ray.runtime.ray_train.train_run import set_train_environment
from periflow_ray.runtime.sweeps.vm_types import select_labels
from periflow_ray.spec.sweep import SweepSpec
from periflow_ray.store.arrow import open_arrow_filesystem
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot
from periflow_ray.sweeps.journal import Trial

# Tune's own directory below the sweep's, which nobody reads again.
TUNE_DIR = "tune"
_SILENCED_LOGGERS = {
    # It misses Tune's own files, and says so at the end.
    "ray.tune.analysis.experiment_analysis": logging.ERROR,
    # A trial's failure is told in one line, and its log has the traceback; Tune would show its own with each.
    "ray.tune.execution.tune_controller": logging.CRITICAL,
    "ray.tune.tune": logging.CRITICAL,
}


def describe_end(trial: Trial, spec: SweepSpec) -> str:
    """One line: of a cause with several, such as a traceback, the first one and where to read the others."""
    parameters = ", ".join(
        f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in trial.parameters.items()
    )
    best = trial.best(spec.mode)
    value = f"no {spec.metric}" if best is None else f"{spec.metric} {best:g}"
    first, *more = (trial.why or "").splitlines() or [""]
    hints = [line for line in more if line.startswith("Hint: ")]
    shown = " ".join([first, *hints])
    job_id = trial.job_ids[-1]
    why = f" ({shown})" if shown else ""
    what = f"trial {trial.number}, job {job_id}: {trial.status}{why}"
    if more:
        what += f", more: periflow-ray job log {job_id}"
    return f"{what}; {value} at step {trial.step}; {parameters}"


def describe_trials(trials: Collection[Trial], best: Trial | None, spec: SweepSpec) -> str:
    counts = {status: sum(trial.status == status for trial in trials) for status in ("success", "early", "failed")}
    text = f"{len(trials)} trials: {counts['success']} ran to the end, {counts['early']} were stopped early"
    if counts["failed"]:
        text += f", {counts['failed']} failed"
    if best is not None:
        text += f"; the best {spec.metric} is {best.best(spec.mode):g}, of trial {best.number}"
    return text


def make_run_config(
    root: StorageRoot, sweep_id: int, callback: tune.Callback, is_over: Callable[[], bool]
) -> tune.RunConfig:
    """How Tune runs a sweep: it keeps nothing, and asks ``is_over`` whether to end."""
    return tune.RunConfig(
        name=TUNE_DIR,
        storage_path=root.path_of(job_key(sweep_id)),
        storage_filesystem=open_arrow_filesystem(root),
        # A trial whose job failed is not tried again, see the driver; one that lost its agent is.
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        failure_config=tune.FailureConfig(max_failures=-1),
        callbacks=[callback],
        stop=_StoppedSweep(is_over),
        verbose=0,
    )


def resources_of(plan: JobPlan, share: float) -> tune.PlacementGroupFactory:
    """What a trial asks Ray for.

    Args:
        share: of a device that it takes.
    """
    bundle = bundle_of(plan, share)
    labels = None if plan.vm.is_local else select_labels(plan.vm_names)
    options = {} if labels is None else {"bundle_label_selector": [labels] * plan.num_nodes}
    if plan.num_nodes == 1:
        return tune.PlacementGroupFactory([bundle], **options)
    # The agent of several nodes only drives them: the first bundle is its own, which needs nothing.
    strategy = "PACK" if plan.vm.is_local else "STRICT_SPREAD"
    return tune.PlacementGroupFactory([{}, *[bundle] * plan.num_nodes], strategy=strategy, **options)


def bundle_of(plan: JobPlan, share: float) -> dict[str, float]:
    """What one node of a trial asks Ray for; the CPUs as ``plan_trial`` shares them."""
    bundle = plan.model_copy(update={"cpus_per_device": plan.cpus_per_device * share}).resources_per_node
    if "GPU" in bundle:
        bundle["GPU"] *= share
    return bundle


@contextlib.contextmanager
def tune_environment(max_concurrent: int | None) -> Iterator[None]:
    """The variables that Ray Tune reads, while a sweep runs: a process of a user's may have a Tuner of its own."""
    set_train_environment()
    own = {
        # The journal and the trials' own jobs keep everything; Tune's files would be a second and a third time.
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
        # A trial that fails before its first report has no metric.
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        # Tune starts one agent after the other, seconds each, for a searcher whose limit it does not know.
        "TUNE_MAX_PENDING_TRIALS_PG": str(max_concurrent or 1),
    }
    former = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    former_levels = {name: logging.getLogger(name).level for name in _SILENCED_LOGGERS}
    for name, level in _SILENCED_LOGGERS.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in former_levels.items():
            logging.getLogger(name).setLevel(level)
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _StoppedSweep(tune.Stopper):  # type: ignore[misc]
    """Ends Tune's loop when the sweep was stopped and no trial runs: one may wait for machines that never come."""

    def __init__(self, is_over: Callable[[], bool]) -> None:
        self._is_over = is_over

    def __getstate__(self) -> dict[str, Any]:
        # For the copy that Tune makes of all it is given, and that nobody restores.
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._is_over()
