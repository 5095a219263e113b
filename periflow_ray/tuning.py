"""``periflow_ray.sweep`` and ``periflow_ray.trainable``: hyperparameters of a function or a template, from Python."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from periflow_ray.errors import JobFailedError, JobStoppedError, UsageError
from periflow_ray.jobs import JobRecord, read_record
from periflow_ray.jobs.succession import driver_id_of
from periflow_ray.jobs.user import user_name
from periflow_ray.plan import JobPlan
from periflow_ray.plan.trial import require_share
from periflow_ray.planned_trials import plan_trials
from periflow_ray.runtime.function_jobs.record import read_resumable_job, reopen_function_job
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.runtime.ray_train.train_run import ensure_ray, set_train_environment
from periflow_ray.settings import ChosenRoot, choose_root
from periflow_ray.spec import parse_sweep
from periflow_ray.store.documents import read_document
from periflow_ray.store.keys import WORKSPACE_FILE, job_key
from periflow_ray.store.root import StorageRoot
from periflow_ray.submit.jobs import store_job
from periflow_ray.submit.workspace import pack_workspace
from periflow_ray.sweeps.documents import read_sweep
from periflow_ray.sweeps.space import parameter_of
from periflow_ray.torch_trainer import TorchTrainer

if TYPE_CHECKING:
    from ray.tune import ResultGrid

_LOOP_CONFIG = "train_loop_config"


def sweep(
    what: TorchTrainer | str | os.PathLike[str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    metric: str | None = None,
    mode: str | None = None,
    num_trials: int | None = None,
    max_concurrent: int | None = None,
    scheduler: str | Mapping[str, Any] = "none",
    search: str | Mapping[str, Any] = "random",
    seed: int = 0,
    stop: Mapping[str, float] | None = None,
    points: Sequence[Mapping[str, Any]] = (),
    device: float = 1.0,
    time_budget: str | None = None,
    max_cost: float | None = None,
    workspace_dir: str | os.PathLike[str] | None = None,
    storage: str | None = None,
    storage_credential: str | None = None,
    resume: int | None = None,
) -> ResultGrid:
    """Search for the best hyperparameters of a function or of a template's command; see ``docs/sweeps.md``.

    Each trial is a job of its own, and everything is as with ``periflow-ray sweep run``: the journal, the retries after
    a loss, ``periflow-ray sweep view`` while it runs. The driver is this process, on the cluster that ``ray.init`` or
    ``$RAY_ADDRESS`` names, else on one of its own. A function gets a trial's parameters in its config, beside
    ``train_loop_config``; it runs in processes of its own, so that it can be stopped early.

    Args:
        what: a trainer, or the path of a template.
        parameters: name -> Ray Tune's domain (``tune.loguniform(1e-4, 1e-1)``, ``tune.grid_search([...])``), a form of
            a sweep's file (``{"loguniform": [1e-4, 1e-1]}``) or a value; also below ``train_loop_config``.
        metric, mode: what is compared, as the script reports it with ``pf.metric``: ``"min"`` or ``"max"``.
        num_trials, max_concurrent, scheduler, search, seed, stop, points, time_budget, max_cost: as in a sweep's file,
            such as ``scheduler={"type": "asha", "max_t": 1000}``.
        device: the share of a device that a trial of one device takes.
        workspace_dir: the directory with a template's script.
        storage, storage_credential: as for the command line; a trainer has its own.
        resume: number of a sweep that ended before it was through; ``what`` and all else are then those of before.
    Returns:
        Every trial with its metrics, checkpoint and error; ``result.metrics["job_id"]`` is its job.
    Raises:
        UsageError, TemplateError: something given cannot be.
        JobFailedError: the sweep failed, such as for want of the metric.
        JobStoppedError: ``periflow-ray sweep stop``.
        KeyboardInterrupt: Ctrl-C, after the trials were saved and stopped; a second one does not wait for that.
    """
    from periflow_ray.runtime.sweeps.results import read_results

    chosen = _choose_root(what, storage, storage_credential)
    if resume is not None:
        given = what, parameters, metric, mode, num_trials, max_concurrent, stop, time_budget, max_cost, workspace_dir
        if any(value is not None for value in given):
            raise UsageError(f"sweep(resume={resume}) goes on with what was given before; leave all but storage out.")
        set_train_environment()
        ensure_ray()
        plan, record = _reopen(chosen.root, resume)
    else:
        spec = parse_sweep(
            {
                "metric": metric,
                "mode": mode,
                "parameters": _read_parameters(parameters),
                "num_trials": num_trials,
                "max_concurrent": max_concurrent,
                "scheduler": scheduler,
                "search": search,
                "seed": seed,
                "stop": dict(stop or {}),
                "points": [dict(point) for point in points],
                "resources": {"device": device},
                "time_budget": time_budget,
                "max_cost": max_cost,
            }
        )
        with tempfile.TemporaryDirectory(prefix="periflow-function-") as scratch:
            plan, workspace = plan_trials(what, workspace_dir, chosen, Path(scratch))
            require_share(plan, device)
            record = store_job(chosen.root, plan, workspace=workspace, created_by=user_name(), sweep=spec)
    _run(chosen.root, plan, record, "started" if resume is None else "resumed")
    return read_results(chosen.root, record.job_id)


def trainable(
    what: TorchTrainer | str | os.PathLike[str],
    *,
    metric: str,
    mode: str,
    device: float = 1.0,
    workspace_dir: str | os.PathLike[str] | None = None,
    storage: str | None = None,
    storage_credential: str | None = None,
) -> Any:
    """A function or a template's command for a ``tune.Tuner`` of your own, with any searcher, scheduler or callback.

    A trial is a job: its checkpoints, its restarts and its log are the job's. Tune gets every report that has the
    metric; its key ``step`` is the step of ``pf.metric``, for ``time_attr``. Tune's checkpoint of a trial names the
    job's newest one, so that a paused trial goes on from it and population based training copies it. Keep
    ``TuneConfig(reuse_actors=True)``, so that a trial needs no new process tree.

    Example:
        ``tune.Tuner(pf.trainable(trainer, metric="loss", mode="min"), param_space={"lr": tune.loguniform(1e-4, 1)})``

    Args:
        what, metric, mode, device, workspace_dir, storage, storage_credential: as of ``sweep``.
    Returns:
        What ``tune.Tuner`` takes, with the resources of a trial.
    Raises:
        UsageError, TemplateError: something given cannot be.
    """
    from ray import tune

    from periflow_ray.runtime.sweeps.tuner_trial import TunerTask, TunerTrial
    from periflow_ray.runtime.sweeps.tuning import resources_of

    if mode not in ("min", "max"):
        raise UsageError(f"mode must be 'min' or 'max', not {mode!r}.")
    chosen = _choose_root(what, storage, storage_credential)
    with tempfile.TemporaryDirectory(prefix="periflow-function-") as scratch:
        plan, workspace = plan_trials(what, workspace_dir, chosen, Path(scratch))
        require_share(plan, device)
        packed = None
        if workspace is not None:
            pack_workspace(workspace, Path(scratch) / WORKSPACE_FILE)
            packed = (Path(scratch) / WORKSPACE_FILE).read_bytes()
    record = JobRecord(
        job_id=0,
        **plan.record_fields,
        created_by=user_name(),
        created_unix_s=time.time(),
    )
    task = TunerTask(
        root=chosen.root,
        num_nodes=plan.num_nodes,
        node_resources=plan.resources_per_node,
        plan=plan,
        record=record,
        device_share=device,
        workspace=packed,
    )
    bound = tune.with_parameters(TunerTrial, task=task, metric=metric, mode=mode)
    return tune.with_resources(bound, resources_of(plan, device))


def _run(root: StorageRoot, plan: JobPlan, record: JobRecord, how: str) -> None:
    from periflow_ray.runtime.sweeps.driver import run_sweep
    from periflow_ray.runtime.sweeps.trial_job import SweepTask

    if not plan.fsync:
        root = root.without_fsync()
    sweep_id = record.job_id
    print(f"Sweep ({sweep_id}) {how} successfully. Trials: periflow-ray sweep view {sweep_id}", flush=True)
    with StateKeeper(root, sweep_id, driver_id=driver_id_of(record)) as state:
        try:
            task = SweepTask(
                root=root,
                sweep_id=sweep_id,
                sweep_plan=plan,
                num_nodes=plan.num_nodes,
                node_resources=plan.resources_per_node,
            )
            succeeded = run_sweep(root, state, plan, record, task, is_interactive=True)
        except Exception as err:
            state.enter_failure(err)
            raise
        if state.status == "stopped":
            raise JobStoppedError(
                f"Sweep ({sweep_id}) is {state.message}. Go on with it: sweep(resume={sweep_id}, storage={root.uri!r})"
            )
        if not succeeded:
            raise JobFailedError(state.message or f"sweep {sweep_id} failed")


def _reopen(root: StorageRoot, sweep_id: int) -> tuple[JobPlan, JobRecord]:
    """Let a sweep that has ended go on, with this process as its driver."""
    read_sweep(root, sweep_id)
    if read_record(root, sweep_id).ray_submission_id is not None:
        raise UsageError(
            f"resume={sweep_id}: a cluster ran the driver of sweep {sweep_id}. "
            f"Go on with it: periflow-ray sweep resume {sweep_id}"
        )
    record, state = read_resumable_job(root, sweep_id)
    record = reopen_function_job(root, record, state, accelerator=record.accelerator, num_devices=record.num_devices)
    return read_document(root, job_key(sweep_id, "plan.json"), JobPlan), record


def _choose_root(what: object, storage: str | None, credential: str | None) -> ChosenRoot:
    given = what.storage if isinstance(what, TorchTrainer) else (None, None)
    chosen = choose_root(storage or given[0], credential or given[1])
    chosen.root.check_writable()
    return chosen


def _read_parameters(given: Mapping[str, Any] | None) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise UsageError("parameters is missing: what varies, such as {'lr': tune.loguniform(1e-4, 1e-1)}.")
    below = given.get(_LOOP_CONFIG)
    flat = {**{name: value for name, value in given.items() if name != _LOOP_CONFIG}, **below} if below else given
    return {str(name): parameter_of(str(name), value) for name, value in flat.items()}
