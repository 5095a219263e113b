"""Lightning's devices, nodes, strategy and accelerator, as the job's environment has them."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping
from typing import Any

from periflow_ray.lightning.flavour import pl

environments: Any = importlib.import_module(f"{pl.__name__}.plugins.environments")


def fill_from_job(options: Mapping[str, Any], environ: Mapping[str, str], num_gpus: int) -> dict[str, Any]:
    """Complete a ``Trainer``'s options with the job's; what the user set stays, and outside a job nothing changes.

    What is Lightning's default counts as left out: ``LightningCLI``, its config files and other configurations hand on
    every option. ``num_nodes=1`` could not train on more nodes anyway: Lightning refuses it, or trains once per node.

    Args:
        options: the keyword arguments that the user gave.
        environ: the environment, with ``PERIFLOW_ENABLED=1`` in a job.
        num_gpus: GPUs that this process can see.
    """
    options = dict(options)
    is_torchrun = "TORCHELASTIC_RUN_ID" in environ
    devices_per_node = int(environ.get("LOCAL_WORLD_SIZE") or environ.get("NPROC_PER_NODE") or 0)
    if environ.get("PERIFLOW_ENABLED") != "1" or devices_per_node == 0:
        return options
    # torchrun counts its own processes, which need not be one for each of the job's devices.
    num_nodes = int(environ["WORLD_SIZE"]) // devices_per_node if is_torchrun else int(environ.get("NUM_NODES") or 1)

    if _is_left_out(options, "devices"):
        options["devices"] = devices_per_node
    if _is_left_out(options, "num_nodes"):
        options["num_nodes"] = num_nodes
    if _is_left_out(options, "accelerator") and not _has_own(options, "_accelerator"):
        options["accelerator"] = "cuda" if num_gpus > 0 else "cpu"
    if _is_left_out(options, "strategy") and devices_per_node * num_nodes > 1:
        options["strategy"] = "ddp"
    if "RANK" in environ and "LOCAL_RANK" in environ and not is_torchrun:
        _add_device_environment(options)
    return options


class DeviceEnvironment(environments.TorchElasticEnvironment):  # type: ignore[misc]
    """Lightning's view of a job that starts the command once per device: ranks are given, nothing is to be started.

    torchrun gives RANK, LOCAL_RANK and WORLD_SIZE the same meaning; only the node's rank has another name.
    """

    @staticmethod
    def detect() -> bool:
        return "RANK" in os.environ and "LOCAL_RANK" in os.environ

    def node_rank(self) -> int:
        return int(os.environ.get("NODE_RANK") or 0)


def _add_device_environment(options: dict[str, Any]) -> None:
    plugins = options.get("plugins") or []
    plugins = list(plugins) if isinstance(plugins, (list, tuple)) else [plugins]
    is_given = any(isinstance(plugin, environments.ClusterEnvironment) for plugin in plugins)
    if not is_given and not _has_own(options, "cluster_environment"):
        options["plugins"] = [*plugins, DeviceEnvironment()]


def _is_left_out(options: Mapping[str, Any], name: str) -> bool:
    given = options.get(name)
    default = inspect.signature(pl.Trainer).parameters[name].default
    return given is None or (type(given) is type(default) and given == default)


def _has_own(options: Mapping[str, Any], attribute: str) -> bool:
    """Whether the user gave a strategy object that brings its own, which Lightning wants set in one place only."""
    return getattr(options.get("strategy"), attribute, None) is not None
