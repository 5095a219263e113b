"""How Ray Tune is set up for a sweep, and a trial's end in words."""

from __future__ import annotations

import os

from ray import tune

from periflow_ray.errors import PeriflowRayError
from periflow_ray.plan import JobPlan
from periflow_ray.runtime.ray_train.train_run import set_train_environment
from periflow_ray.runtime.sweeps.vm_types import select_labels
from periflow_ray.spec.sweep import SweepSpec
from periflow_ray.sweeps.journal import Trial


def describe_end(trial: Trial, spec: SweepSpec) -> str:
    parameters = ", ".join(
        f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in trial.parameters.items()
    )
    best = trial.best(spec.mode)
    value = f"no {spec.metric}" if best is None else f"{spec.metric} {best:g}"
    why = f" ({trial.why})" if trial.why else ""
    what = f"trial {trial.number}, job {trial.job_ids[-1]}: {trial.status}{why}"
    return f"{what}; {value} at step {trial.step}; {parameters}"


def resources_of(plan: JobPlan, spec: SweepSpec) -> tune.PlacementGroupFactory:
    share = spec.resources.device
    # The CPUs as plan_trial shares them.
    bundle = plan.model_copy(update={"cpus_per_device": plan.cpus_per_device * share}).resources_per_node
    if "GPU" in bundle:
        bundle["GPU"] *= share
    if plan.num_nodes > 1:
        raise PeriflowRayError("trials of several nodes are not there yet; set num_devices to those of one node")
    labels = None if plan.vm.is_local else select_labels(plan.vm_names)
    options = {} if labels is None else {"bundle_label_selector": [labels]}
    return tune.PlacementGroupFactory([bundle], **options)


def set_tune_environment() -> None:
    set_train_environment()
    # The journal and the trials' own jobs keep everything; Tune's files would be a second and a third time.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "1000000000"
    # A trial that fails before its first report has no metric.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
