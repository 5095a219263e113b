"""``periflow_ray.TorchTrainer``: a Python function as a job, on this process's Ray cluster or on one of its own."""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
import ray.train
import ray.train.torch

from periflow_ray.errors import UsageError
from periflow_ray.runtime.checkpoint_board import Retention
from periflow_ray.runtime.function_worker import FunctionTask, run_function
from periflow_ray.runtime.group_policy import MonitoredTrainer
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.runtime.meeting import JobRules
from periflow_ray.runtime.supervision import Supervision, describe_error, remove_sandboxes
from periflow_ray.runtime.train_run import (
    WithoutPlacementGroupCleaner,
    ensure_ray,
    set_train_environment,
    train_run_config,
)
from periflow_ray.store import jobs
from periflow_ray.store.jobs import JobRecord, JobState
from periflow_ray.store.retention import KeepBest
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.root_choice import ChosenRoot, choose_root


class TorchTrainer:
    """Runs a function on every device of a job, with progress, metrics and checkpoints recorded as for any job.

    Inside the function use plain PyTorch (``ray.train.torch.prepare_model``) or Lightning
    (``periflow_ray.lightning.prepare_trainer``), and the SDK: ``pf.init``, ``pf.train_step``, ``pf.metric``,
    ``pf.upload_checkpoint``. It runs on the cluster that ``ray.init`` or ``$RAY_ADDRESS`` names, else on one that
    lives on this machine's loopback as long as this process. Files
    written below ``$CKPT_DIR`` are what ``pf.upload_checkpoint`` saves; after a
    restart they are back and ``$PROCESSED_ITERS`` is the resumed step.

    Args:
        train_loop_per_worker: takes the config, or nothing.
        train_loop_config: what the function gets.
        num_devices: ranks of the job: GPUs, or CPU slots where there are none.
        name: the job's name.
        experiment: the experiment it belongs to.
        storage: storage root; default as for the command line.
        storage_credential: name of the stored credential that opens it; default as for the command line.
        use_gpu: one GPU per rank; default: where the cluster has enough.
        resources_per_device: Ray resources of one rank, beside its GPU; default one CPU, less if there are fewer.
        max_failures: restarts from the latest committed checkpoint before the job fails.
        keep_last: committed checkpoints to keep; older ones are deleted. None keeps all.
        keep_best: also keep the one with the best value of a metric.
        torch_config: passed on to Ray's TorchTrainer.
        datasets: Ray Data datasets, passed on to Ray's TorchTrainer.
    """

    def __init__(
        self,
        train_loop_per_worker: Callable[[], Any] | Callable[[dict[str, Any]], Any],
        train_loop_config: dict[str, Any] | None = None,
        *,
        num_devices: int = 1,
        name: str | None = None,
        experiment: str | None = None,
        storage: str | None = None,
        storage_credential: str | None = None,
        use_gpu: bool | None = None,
        resources_per_device: Mapping[str, float] | None = None,
        max_failures: int = 0,
        keep_last: int | None = None,
        keep_best: KeepBest | None = None,
        torch_config: ray.train.torch.TorchConfig | None = None,
        datasets: Mapping[str, Any] | None = None,
    ) -> None:
        if num_devices < 1:
            raise UsageError(f"num_devices must be at least 1, not {num_devices}.")
        if not callable(train_loop_per_worker):
            raise UsageError(f"train_loop_per_worker must be a function, not {type(train_loop_per_worker).__name__}.")
        self._train_loop = train_loop_per_worker
        self._config = train_loop_config
        self._num_devices = num_devices
        self._name = name
        self._experiment = experiment
        self._storage = storage
        self._storage_credential = storage_credential
        self._use_gpu = use_gpu
        self._resources_per_device = resources_per_device
        self._max_failures = max_failures
        self._retention = Retention(keep_last, keep_best)
        self._torch_config = torch_config
        self._datasets = dict(datasets or {})

    def fit(self) -> ray.train.Result:
        """Run the job to its end.

        Returns:
            Ray's result: ``metrics``, ``checkpoint`` (the latest committed one), ``path``, ``return_value``.
        Raises:
            ray.train.TrainingFailedError: the function failed more often than ``max_failures`` allows.
        """
        set_train_environment()
        chosen = choose_root(self._storage, self._storage_credential)
        root = chosen.root
        root.check_writable()
        ensure_ray()
        record = self._record_job(root)
        with StateKeeper(root, record.job_id) as state:
            return self._fit(chosen, record.job_id, state)

    def _fit(self, chosen: ChosenRoot, job_id: int, state: StateKeeper) -> ray.train.Result:
        root = chosen.root
        print(f"Job ({job_id}) started successfully.", flush=True)
        use_gpu = self._wants_gpus()
        resources = self._choose_resources()
        supervision = Supervision(
            root,
            job_id,
            state,
            num_members=self._num_devices,
            resources_per_member=resources,
            rules=JobRules(devices_per_member=1, max_failures=self._max_failures, retention=self._retention),
        )
        task = FunctionTask(
            train_loop=self._train_loop,
            config=self._config,
            job_id=job_id,
            root=root,
            storage_credential=chosen.credential,
            monitor=supervision.monitor,
        )
        trainer = _RayTorchTrainer(
            _run_function_loop,
            train_loop_config={"task": task},
            torch_config=self._torch_config,
            scaling_config=ray.train.ScalingConfig(
                num_workers=self._num_devices,
                use_gpu=use_gpu,
                resources_per_worker={**resources, **({"GPU": 1} if use_gpu else {})},
            ),
            run_config=train_run_config(root, job_id),
            datasets=self._datasets,
        )
        trainer.monitor = supervision.monitor
        try:
            result = trainer.fit()
        except KeyboardInterrupt:
            supervision.finish()
            state.enter("stopped", "interrupted")
            raise
        except Exception as err:
            reason, failures = supervision.finish()
            state.enter("failed", describe_error(failures, err, reason))
            raise
        finally:
            remove_sandboxes(root.uri, job_id, num_nodes=1)
        supervision.finish()
        state.enter("success", None)
        return result

    def _wants_gpus(self) -> bool:
        if self._use_gpu is not None:
            return self._use_gpu
        return bool(ray.cluster_resources().get("GPU", 0) >= self._num_devices)

    def _choose_resources(self) -> dict[str, float]:
        if self._resources_per_device is not None:
            return dict(self._resources_per_device)
        return {"CPU": min(1.0, ray.cluster_resources().get("CPU", 1.0) / self._num_devices)}

    def _record_job(self, root: StorageRoot) -> JobRecord:
        record = JobRecord(
            job_id=jobs.claim_job_id(root),
            name=self._name or getattr(self._train_loop, "__name__", None),
            experiment=self._experiment,
            vm="-",
            accelerator="GPU" if self._wants_gpus() else "CPU",
            num_devices=self._num_devices,
            num_nodes=1,
            dataset=None,
            created_by=getpass.getuser(),
            created_unix_s=time.time(),
        )
        jobs.write_state(root, record.job_id, JobState("waiting"))
        jobs.write_record(root, record)
        return record


class _RayTorchTrainer(MonitoredTrainer, WithoutPlacementGroupCleaner, ray.train.torch.TorchTrainer):  # type: ignore[misc]
    pass


def _run_function_loop(config: dict[str, Any]) -> Any:
    return run_function(config["task"])
