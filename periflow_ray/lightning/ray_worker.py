"""Make a Lightning ``Trainer`` train inside a Ray Train worker, in a function job."""

from __future__ import annotations

import copy
import functools
import importlib
from typing import Any

from periflow_ray.errors import PeriFlowError
from periflow_ray.lightning.callback import PeriFlowCallback
from periflow_ray.lightning.checkpoints import make_resume_options
from periflow_ray.lightning.flavour import has_class_named, pl, refuse_other_flavour

environments: Any = importlib.import_module(f"{pl.__name__}.plugins.environments")

# What Ray's strategies and environment say in the worker's name.
_RAY_OVERRIDES = (
    "root_device",
    "distributed_sampler_kwargs",
    "world_size",
    "global_rank",
    "local_rank",
    "node_rank",
    "set_world_size",
    "set_global_rank",
    "teardown",
)


def prepare_trainer(trainer: Any) -> Any:
    """Make a constructed ``Trainer`` train with the job's other workers; call it inside ``train_loop_per_worker``.

    Sets strategy (DDP; FSDP if the trainer has that, for example ``strategy="fsdp"``), devices, nodes, accelerator
    (CUDA if the worker has a GPU, else CPU) and the cluster environment, so leave ``devices`` and ``num_nodes`` out.
    Keeps everything else: the strategy's own options, precision, sync_batchnorm, plugins. Adds ``PeriFlowCallback``,
    and ``fit`` resumes a restarted job like ``PeriFlowTrainer.fit`` does.

    Returns:
        The same trainer.
    Raises:
        PeriFlowError: not in a Ray Train worker, or another strategy.
    """
    refuse_other_flavour(trainer, pl.Trainer)
    if not isinstance(trainer, pl.Trainer):
        raise PeriFlowError(
            f"prepare_trainer() got a {type(trainer).__module__}.{type(trainer).__qualname__}, but needs a "
            f"{pl.__name__}.Trainer."
        )
    _connect_to_worker(trainer)
    _add_callback(trainer)
    if not has_class_named(trainer, "PeriFlowTrainer"):
        _resume_in_fit(trainer)
    return trainer


def _connect_to_worker(trainer: Any) -> None:
    """Replace the trainer's accelerator connector by one that fits the worker.

    The connector is where Lightning turns its flags into strategy, precision and devices, and everything else asks it
    through the trainer, so making it anew from the old one's flags is all there is to change.
    """
    import ray.train
    import ray.train.torch

    try:
        context = ray.train.get_context()
        num_workers, num_local_workers = context.get_world_size(), context.get_local_world_size()
        has_gpu = ray.train.torch.get_device().type == "cuda"
    except Exception as err:  # Ray raises various kinds, by version.
        raise PeriFlowError(
            "prepare_trainer() works inside a Ray Train worker only: call it in train_loop_per_worker. "
            f"Elsewhere use the Trainer as it is, or PeriFlowTrainer. (Ray says: {err})"
        ) from err
    old = trainer._accelerator_connector
    layer_sync, precision_plugin = old._layer_sync, old._precision_plugin_flag
    plugins = [
        _find_ray_class("RayLightningEnvironment", environments.LightningEnvironment)(),
        *(plugin for plugin in (layer_sync, precision_plugin, old.checkpoint_io) if plugin is not None),
    ]
    trainer._accelerator_connector = type(old)(
        accelerator="cuda" if has_gpu else "cpu",
        # Ray's strategies ask Ray for this worker's device; Lightning wants a list that is true for the node.
        devices="auto" if has_gpu else num_local_workers,
        num_nodes=max(1, num_workers // num_local_workers),
        strategy=_make_ray_strategy(trainer.strategy),
        plugins=plugins,
        precision=None if precision_plugin is not None else old._precision_flag,
        use_distributed_sampler=old.use_distributed_sampler,
    )


def _make_ray_strategy(strategy: Any) -> Any:
    if isinstance(strategy, pl.strategies.SingleDeviceStrategy):
        strategy = pl.strategies.DDPStrategy()
    if isinstance(strategy, pl.strategies.DDPStrategy):
        ray_class = _find_ray_class("RayDDPStrategy", pl.strategies.DDPStrategy)
    elif isinstance(strategy, pl.strategies.FSDPStrategy):
        ray_class = _find_ray_class("RayFSDPStrategy", pl.strategies.FSDPStrategy)
    else:
        raise PeriFlowError(
            f"prepare_trainer() cannot use the strategy {type(strategy).__name__} on Ray. "
            "Allowed: 'auto' (which is ddp), 'ddp' and its variants, 'fsdp', or an object of their classes."
        )
    # Ray's classes only override where a rank and its device come from, so changing the class of a copy keeps every
    # option that the user set; what the old connector had put into it is taken out again.
    ray_strategy = copy.copy(strategy)
    if not isinstance(strategy, ray_class):
        is_plain = type(strategy) in ray_class.__bases__
        ray_strategy.__class__ = ray_class if is_plain else type(ray_class.__name__, (ray_class, type(strategy)), {})
    ray_strategy._accelerator = None
    ray_strategy._precision_plugin = None
    ray_strategy._checkpoint_io = None
    ray_strategy.cluster_environment = None
    ray_strategy.parallel_devices = None
    if hasattr(ray_strategy, "_start_method"):
        ray_strategy._start_method = "popen"  # "spawn" and "fork" would start the processes that Ray has started.
    return ray_strategy


def _find_ray_class(name: str, lightning_base: Any) -> Any:
    """Ray's class for Lightning of that name, on top of this Lightning.

    Where the package ``lightning`` is installed, Ray builds on ``lightning.pytorch`` even if the script uses
    ``pytorch_lightning``; then what Ray overrides is put on the class that the script's Lightning has.
    """
    ray_class = getattr(importlib.import_module("ray.train.lightning"), name)
    if issubclass(ray_class, lightning_base):
        return ray_class
    return type(
        name, (lightning_base,), {key: vars(ray_class)[key] for key in _RAY_OVERRIDES if key in vars(ray_class)}
    )


def _add_callback(trainer: Any) -> None:
    if any(has_class_named(callback, "PeriFlowCallback") for callback in trainer.callbacks):
        return
    # Lightning runs callbacks that write checkpoints last; so does this.
    num_others = sum(not isinstance(callback, pl.callbacks.Checkpoint) for callback in trainer.callbacks)
    trainer.callbacks.insert(num_others, PeriFlowCallback())


def _resume_in_fit(trainer: Any) -> None:
    fit = trainer.fit

    @functools.wraps(fit)
    def fit_or_resume(
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: Any = None,
        weights_only: bool | None = None,
    ) -> None:
        fit(model, train_dataloaders, val_dataloaders, datamodule, **make_resume_options(ckpt_path, weights_only))

    trainer.fit = fit_or_resume
