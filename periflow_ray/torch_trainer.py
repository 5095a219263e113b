"""``periflow_ray.TorchTrainer``: a Python function as a job, on this process's Ray cluster or on one of its own.

Long because every argument is told here, in the job's own words and in Ray's.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import ray
import ray.train
import ray.train.torch

from periflow_ray.errors import JobStoppedError, PeriflowRayError, UsageError
from periflow_ray.jobs import JobRecord, read_claim
from periflow_ray.jobs.succession import driver_id_of
from periflow_ray.plan.catalogue import find_vm
from periflow_ray.runtime.function_jobs.command import COMMAND, FunctionCommand
from periflow_ray.runtime.function_jobs.rank import FunctionTask, run_function
from periflow_ray.runtime.function_jobs.ray_arguments import OwnArguments, read_arguments
from periflow_ray.runtime.function_jobs.ray_words import RaySetup
from periflow_ray.runtime.function_jobs.record import (
    read_resumable_job,
    record_new_job,
    record_num_nodes,
    reopen_function_job,
)
from periflow_ray.runtime.function_jobs.result import RankResult, describe_result
from periflow_ray.runtime.function_jobs.shell import OUTPUT_MOUNT_PATH
from periflow_ray.runtime.job_driver import JobSetup, run_job
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.runtime.monitor.client import RayMonitor
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.runtime.monitor.sinks import plan_sinks, sink_variables
from periflow_ray.runtime.notifications import make_notifier
from periflow_ray.runtime.plugin_credentials import require_plugin_credentials
from periflow_ray.runtime.ray_train.group_policy import MonitoredTrainer
from periflow_ray.runtime.ray_train.train_run import (
    WithoutPlacementGroupCleaner,
    ensure_ray,
    has_other_machines,
    set_train_environment,
    train_run_config,
)
from periflow_ray.runtime.ray_train.vm_choice import has_labels
from periflow_ray.settings import ChosenRoot, choose_root
from periflow_ray.spec import KeepBest, parse_arguments
from periflow_ray.store.checkpoints import latest_committed
from periflow_ray.store.root import StorageRoot
from periflow_ray.submit.jobs import store_workspace
from periflow_ray.submit.modules import scan_modules
from periflow_ray.submit.workspace import Workspace

# Of failures, where a template has no -1.
_ANY_NUMBER = 1_000_000


class TorchTrainer:
    """Runs a function on every device of a job, with progress, metrics and checkpoints recorded as for any job.

    Inside the function use plain PyTorch (``ray.train.torch.prepare_model``) or Lightning
    (``periflow_ray.lightning.prepare_trainer``), and the SDK: ``pf.init``, ``pf.train_step``, ``pf.metric``,
    ``pf.upload_checkpoint``. It runs on the cluster that ``ray.init`` or ``$RAY_ADDRESS`` names, else on one that
    lives on this machine's loopback as long as this process. Files written below ``$CKPT_DIR`` are what
    ``pf.upload_checkpoint`` saves; after a restart they are back and ``$PROCESSED_ITERS`` is the resumed step.

    When a machine is about to go, and on Ctrl-C, SIGTERM or ``periflow-ray job stop``, ``pf.is_emergency_save()`` is
    true on all ranks at the same step, and the upload that follows is the last one before the end.

    A program written for ``ray.train.torch.TorchTrainer`` runs with the import changed: its arguments and the calls of
    ``ray.train`` in its function mean the same here, or are refused with what to write instead.

    Args:
        train_loop_per_worker: takes the config, or nothing.
        train_loop_config: what the function gets.
        num_devices: ranks of the job: GPUs, or CPU slots where there are none; default 1.
        min_devices: ranks that are enough to go on while machines are missing; None waits for all.
        name: the job's name.
        experiment: the experiment it belongs to.
        storage: storage root; default as for the command line.
        storage_credential: name of the stored credential that opens it; default as for the command line.
        vm: the VM type on whose nodes the ranks run, on a cluster of ``cluster_configs/`` or ``periflow-ray cluster
            up``; of several the first one, and the next while the cloud has none of it. None for any nodes.
        use_gpu: one GPU per rank; default: where the cluster has enough, or ``vm`` is named.
        resources_per_device: Ray resources of one rank, beside its GPU; default one CPU, less if there are fewer.
        max_failures: restarts from the latest committed checkpoint before the job fails; those after a machine was
            taken away with notice are not counted. -1 for any number; default 0.
        hang_timeout_s: seconds without a step on any rank that count as a failure; every rank's stack is then in the
            job's log. None waits forever.
        resume: number of an ended function job to go on with, under its number and from its latest committed
            checkpoint, on as many devices as are asked for now.
        keep_last: committed checkpoints to keep; older ones are deleted. None keeps all.
        keep_best: also keep the one with the best value of a metric:
            ``periflow_ray.KeepBest(metric="val_loss", mode="min")``.
        plugin: services that hear of the job, as the section ``plugin`` of a template has them, such as
            ``{"webhook": {"credential_id": "our-hook"}, "wandb": {"credential_id": "our-wandb"}}``. Credentials are
            those of this machine. With ``wandb``, one rank that calls ``wandb.init()`` continues the job's run.
        env_var: environment variables that the function finds, such as ``{"WANDB_ENTITY": "our-team"}``. They are set
            when torch is imported already; those that the job itself sets win.
        torch_config: passed on to Ray's TorchTrainer.
        datasets: Ray Data datasets, passed on to Ray's TorchTrainer.
        dataset_config: passed on to Ray's TorchTrainer.
        scaling_config: Ray's words for ``num_devices``, ``min_devices``, ``use_gpu`` and ``resources_per_device``.
        run_config: Ray's words for ``name``, ``storage``, ``max_failures``, ``keep_last`` and ``keep_best``; callbacks
            are called as by Ray.
        resume_from_checkpoint: what ``ray.train.get_checkpoint()`` gives while the job has no checkpoint of its own.
        metadata, validation_config: refused, with what to write instead.
    Raises:
        UsageError: an argument is not as it has to be, or contradicts another one.
    """

    def __init__(
        self,
        train_loop_per_worker: Callable[[], Any] | Callable[[dict[str, Any]], Any],
        train_loop_config: dict[str, Any] | None = None,
        *,
        num_devices: int | None = None,
        min_devices: int | None = None,
        name: str | None = None,
        experiment: str | None = None,
        storage: str | None = None,
        storage_credential: str | None = None,
        vm: str | Sequence[str] | None = None,
        use_gpu: bool | None = None,
        resources_per_device: Mapping[str, float] | None = None,
        max_failures: int | None = None,
        hang_timeout_s: float | None = None,
        resume: int | None = None,
        keep_last: int | None = None,
        keep_best: KeepBest | None = None,
        plugin: Mapping[str, Any] | None = None,
        env_var: Mapping[str, str] | None = None,
        torch_config: ray.train.torch.TorchConfig | None = None,
        datasets: Mapping[str, Any] | None = None,
        dataset_config: ray.train.DataConfig | None = None,
        scaling_config: ray.train.ScalingConfig | None = None,
        run_config: ray.train.RunConfig | None = None,
        resume_from_checkpoint: ray.train.Checkpoint | None = None,
        metadata: Mapping[str, Any] | None = None,
        validation_config: object = None,
    ) -> None:
        given = read_arguments(
            OwnArguments(
                num_devices=num_devices,
                min_devices=min_devices,
                use_gpu=use_gpu,
                resources_per_device=resources_per_device,
                max_failures=max_failures,
                name=name,
                storage=storage,
                keep_last=keep_last,
                keep_best=keep_best,
                vm=vm,
            ),
            scaling_config,
            run_config,
            metadata=metadata,
            validation_config=validation_config,
        )
        if given.num_devices < 1:
            raise UsageError(f"num_devices must be at least 1, not {given.num_devices}.")
        if not 1 <= given.min_devices <= given.num_devices:
            raise UsageError(
                f"min_devices must be from 1 to num_devices, {given.num_devices}, not {given.min_devices}."
            )
        if not callable(train_loop_per_worker):
            raise UsageError(f"train_loop_per_worker must be a function, not {type(train_loop_per_worker).__name__}.")
        if hang_timeout_s is not None and hang_timeout_s <= 0:
            raise UsageError(f"hang_timeout_s must be above 0, or None, not {hang_timeout_s}.")
        arguments = parse_arguments(plugin=plugin, env_var=env_var)
        self._plugin, self._env_var = arguments.plugin, arguments.env_var
        self._train_loop = train_loop_per_worker
        self._config = train_loop_config
        self._num_devices = given.num_devices
        self._min_devices = given.min_devices
        self._name = given.name
        self._experiment = experiment
        self._storage = given.storage
        self._storage_credential = storage_credential
        self._vm_names = [vm] if isinstance(vm, str) else list(vm or ())
        for vm_name in self._vm_names:
            find_vm(vm_name)
        self._use_gpu = given.use_gpu
        self._resources_per_device = given.resources_per_device
        self._resume = resume
        self._rules = JobRules(
            devices_per_member=1,
            max_failures=given.max_failures,
            retention=given.retention,
            hang_timeout_s=hang_timeout_s,
        )
        self._torch_config = torch_config
        self._datasets = dict(datasets or {})
        self._dataset_config = dataset_config
        self._score = given.score
        self._scaling_config = given.scaling
        self._run_config = given.run
        self._resume_from_checkpoint = resume_from_checkpoint

    def fit(self) -> ray.train.Result:
        """Run the job to its end.

        Returns:
            Ray's result: ``metrics``, ``checkpoint`` (the latest committed one), ``best_checkpoints`` and
            ``metrics_dataframe`` (of all that the job has), ``path``, ``return_value``.
        Raises:
            ray.train.TrainingFailedError: the function failed more often than ``max_failures`` allows.
            KeyboardInterrupt: Ctrl-C, after the job was saved and stopped; a second Ctrl-C does not wait for that.
            JobStoppedError: ``periflow-ray job stop``.
            UsageError, NotFoundError: the job that ``resume`` names cannot be resumed, a credential is missing or is
                of another type, or the cluster's nodes have no VM types.
        """
        set_train_environment(is_elastic=self._min_devices < self._num_devices)
        chosen = choose_root(self._storage, self._storage_credential)
        root = chosen.root
        root.check_writable()
        # Before a cluster starts: a mistake is told at once.
        require_plugin_credentials(self._plugin)
        ended = None if self._resume is None else read_resumable_job(root, self._resume)
        ensure_ray()
        if self._vm_names and not has_labels():
            raise UsageError(
                f"vm={self._vm_names[0]!r}: the nodes of this Ray cluster do not say of which VM type they are. Run on "
                "one of 'periflow-ray cluster up', or leave vm out."
            )
        modules = scan_modules() if has_other_machines() else None
        accelerator = "GPU" if self.wants_gpus() else "CPU"
        if ended is not None:
            record = reopen_function_job(root, *ended, accelerator=accelerator, num_devices=self._num_devices)
        else:
            record = record_new_job(
                root,
                name=self._name or getattr(self._train_loop, "__name__", None),
                experiment=self._experiment,
                accelerator=accelerator,
                num_devices=self._num_devices,
            )
        with StateKeeper(root, record.job_id, driver_id=driver_id_of(record)) as state:
            return self._fit(chosen, record, state, modules)

    def as_trials(self) -> tuple[dict[str, Any], FunctionCommand]:
        """The trials of a sweep over this function: the keys of their template, and what each rank calls.

        Raises:
            UsageError: it has something that a trial cannot have.
        """
        if self._resume is not None or self._datasets or self._min_devices < self._num_devices:
            raise UsageError(
                "the trainer of a sweep has resume, datasets or min_devices; leave it out. Read the data in the "
                "function; sweep(resume=...) goes on with a sweep."
            )
        rules = self._rules
        if self._resume_from_checkpoint is not None or self._run_config.callbacks or rules.retention.num_best > 1:
            raise UsageError(
                "the trainer of a sweep has resume_from_checkpoint, callbacks or a score of several best checkpoints; "
                "leave it out."
            )
        timeout_s = rules.hang_timeout_s
        resources = self._resources_per_device or {}
        others = sorted(set(resources) - {"CPU", "GPU"})
        if others or resources.get("GPU", 1) not in (0, 1):
            raise UsageError(
                f"the trials of a sweep ask for CPUs and whole GPUs only, not for {dict(resources)}. For a share of a "
                "GPU give device to sweep."
            )
        scaling = self._scaling_config
        if scaling.accelerator_type or scaling.label_selector or scaling.placement_strategy != "PACK":
            raise UsageError(
                "the trials of a sweep do not know accelerator_type, label_selector and placement_strategy of a "
                "ScalingConfig; give vm to the trainer, or leave them out."
            )
        name = self._name or getattr(self._train_loop, "__name__", None)
        template = {
            "name": name,
            "experiment": self._experiment,
            "vm": self._vm_names or ["local"],
            "num_devices": self._num_devices,
            "max_failures": rules.max_failures if rules.max_failures >= 0 else _ANY_NUMBER,
            "hang_timeout": None if timeout_s is None else f"{max(1, round(timeout_s))}s",
            "job_setting": {
                "type": "custom",
                "launch_mode": "device",
                "docker": {"command": COMMAND, "env_var": self._env_var},
                "resources": {"cpus": resources["CPU"]} if "CPU" in resources else None,
            },
            "checkpoint": {
                "output_checkpoint_dir": OUTPUT_MOUNT_PATH,
                "keep_last": rules.retention.keep_last,
                "keep_best": rules.retention.keep_best,
            },
            "plugin": self._plugin,
        }
        command = FunctionCommand(self._train_loop, self._config, name or "")
        if self._torch_config is not None:
            chosen = {"backend": self._torch_config.backend, "timeout_s": self._torch_config.timeout_s}
            command = dataclasses.replace(command, **chosen)
        return template, command

    @property
    def storage(self) -> tuple[str | None, str | None]:
        """The storage root and the name of its credential, as they were given."""
        return self._storage, self._storage_credential

    def wants_gpus(self) -> bool:
        """Whether each rank gets a GPU; needs ``ray.init``, unless it was said."""
        if self._use_gpu is not None:
            return self._use_gpu
        if self._vm_names:
            # Its nodes may not be there yet.
            return True
        return bool(ray.cluster_resources().get("GPU", 0) >= self._num_devices)

    def _fit(
        self, chosen: ChosenRoot, record: JobRecord, state: StateKeeper, modules: Workspace | None
    ) -> ray.train.Result:
        root, job_id = chosen.root, record.job_id
        print(f"Job ({job_id}) {'started' if self._resume is None else 'resumed'} successfully.", flush=True)
        resources = self._choose_resources()
        sinks = plan_sinks(self._plugin, record, self._env_var, state.note)
        variables = sink_variables(sinks, given=self._env_var)
        state.hide(variables.secrets.values())

        function = ray.cloudpickle.dumps((self._train_loop, self._config))
        if modules is not None:
            store_workspace(root, job_id, modules)

        def make_trainer(monitor: RayMonitor) -> MonitoredTrainer:
            task = FunctionTask(
                function=function,
                has_modules=modules is not None,
                job_id=job_id,
                claim=read_claim(root, job_id),
                root=root,
                storage_credential=chosen.credential,
                monitor=monitor,
                environment={**variables.settings, **self._env_var},
                secrets=variables.secrets,
                ray=RaySetup(
                    record.name or str(job_id), self._resume_from_checkpoint, bool(self._run_config.callbacks)
                ),
            )
            return self._make_trainer(task, resources)

        setup = JobSetup(
            num_members=self._num_devices,
            min_num_members=self._min_devices,
            resources_per_member=resources,
            vm_names=self._vm_names,
            rules=dataclasses.replace(self._rules, sinks=sinks, driver_id=driver_id_of(record)),
            is_interactive=True,
            members_are_ranks=True,
            notifier=make_notifier(self._plugin, record, state.note),
            on_attempt=lambda news: record_num_nodes(root, job_id, news.num_nodes),
        )
        end = run_job(root, job_id, state, setup, make_trainer)
        if end.status == "stopped":
            _raise_stopped(root, job_id, end.signum, end.error)
        if end.error is not None:
            raise end.error
        if end.result is None:
            raise PeriflowRayError(state.message or f"job {job_id} failed.")
        return describe_result(end.result, root, job_id, self._score)

    def _make_trainer(self, task: FunctionTask, resources: Mapping[str, float]) -> _RayTorchTrainer:
        return _RayTorchTrainer(
            _run_function_loop,
            train_loop_config={"task": task},
            torch_config=self._torch_config,
            scaling_config=dataclasses.replace(
                self._scaling_config,
                num_workers=self._num_devices,
                use_gpu="GPU" in resources,
                resources_per_worker=dict(resources),
            ),
            run_config=train_run_config(task.root, task.job_id, self._run_config),
            datasets=self._datasets,
            dataset_config=self._dataset_config,
        )

    def _choose_resources(self) -> dict[str, float]:
        gpu = {"GPU": 1.0} if self.wants_gpus() else {}
        if self._resources_per_device is not None:
            return {**gpu, **self._resources_per_device}
        if self._vm_names:
            return {"CPU": 1.0, **gpu}
        return {"CPU": min(1.0, ray.cluster_resources().get("CPU", 1.0) / self._num_devices), **gpu}


def _raise_stopped(
    root: StorageRoot, job_id: int, signum: signal.Signals | None, error: BaseException | None
) -> NoReturn:
    """End ``fit`` as whoever stopped the job expects."""
    newest = latest_committed(root, job_id)
    where = "it has no checkpoint" if newest is None else f"its newest checkpoint is of step {newest.step}"
    text = f"Job ({job_id}) is stopped; {where}. Go on with it: TorchTrainer(..., resume={job_id})"
    is_interrupted = error is not None and not isinstance(error, Exception)
    if signum is None and not is_interrupted:
        raise JobStoppedError(text) from None
    print(text, flush=True)
    if is_interrupted:
        assert error is not None
        raise error
    if signum == signal.SIGINT:
        raise KeyboardInterrupt from None
    # Whoever had handled it before does so now.
    signal.raise_signal(signal.SIGTERM)
    raise SystemExit(128 + signal.SIGTERM)


class _RayTorchTrainer(MonitoredTrainer, WithoutPlacementGroupCleaner, ray.train.torch.TorchTrainer):  # type: ignore[misc]
    pass


def _run_function_loop(config: dict[str, Any]) -> RankResult:
    return run_function(config["task"])
