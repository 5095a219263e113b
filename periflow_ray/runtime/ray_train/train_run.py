"""How this project sets Ray Train up, for command jobs and function jobs alike."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import socket
from pathlib import Path

import ray
import ray.train

from periflow_ray.errors import ClusterError
from periflow_ray.private_files import create_private, make_private_directories
from periflow_ray.runtime.ray_private import (
    PlacementGroupCleanerCallback,
    TrainerHooks,
    asks_for_token,
    enable_token_if_there,
    keep_to_loopback,
    without_token_hint,
)
from periflow_ray.store.arrow import open_arrow_filesystem
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot

# The controller's polling interval; at Ray's default of 2 s every ray.train.report takes that long.
POLL_INTERVAL_S = 0.25
# A cluster that scales up needs minutes for new VMs; until then Ray Train waits and tries again.
GROUP_START_TIMEOUT_S = 900
# An elastic job starts when it was seen that there is room; if that was wrong, it looks again.
ELASTIC_GROUP_START_TIMEOUT_S = 60
_PROBE_TIMEOUT_S = 5.0
_TOKEN_HINT = "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file that has it."


class WithoutPlacementGroupCleaner(TrainerHooks):
    """Mixed into a Ray trainer: no detached cleaner actor beside the controller.

    It would outlive a stopped job by as long as the cluster lives, because it cannot end itself (seen in Ray 2.60),
    and there is nothing for it to do: when the driver ends, Ray removes the job's placement groups anyway.
    """

    left_out_callbacks: tuple[type, ...] = (PlacementGroupCleanerCallback,)


def set_train_environment(is_elastic: bool = False) -> None:
    """Set the variables that Ray Train reads in the driver and hands on to its controller and workers."""
    start_timeout_s = ELASTIC_GROUP_START_TIMEOUT_S if is_elastic else GROUP_START_TIMEOUT_S
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(POLL_INTERVAL_S))
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(start_timeout_s))
    # The monitor watches for machines that go, and saves at an agreed step; Ray's watcher would be a second one.
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Gauges for Ray's dashboard, which controller and workers would renew all the time.
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    # The patched print hands every line on twice, to Ray's log and to the output that we copy.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")


def ensure_ray() -> None:
    """Initialise Ray unless it is: join the cluster at ``$RAY_ADDRESS``, else start one on loopback.

    Raises:
        ClusterError: the cluster does not answer, or does not let this process in.
    """
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        _join(os.environ["RAY_ADDRESS"])
        return
    # The variable of the same meaning (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER) is read when Ray is imported, which user code
    # has done by now.
    keep_to_loopback()
    keep_token_private()
    with without_token_hint():
        ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING)


def _join(address: str) -> None:
    is_open = "RAY_AUTH_MODE" in os.environ or re.fullmatch(r"[^/]+:\d+", address) is None
    # Ray shows no token to an address that was named, because the token of one cluster is not another one's to know;
    # and with one, it gets nowhere in a cluster that asks for none.
    if not (is_open or not asks_for_token(address, _PROBE_TIMEOUT_S) or _may_show_token(address)):
        raise ClusterError(f"the Ray cluster at {address} ($RAY_ADDRESS) asks for a token. {_TOKEN_HINT}")
    try:
        ray.init(logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as err:
        if (mismatch := describe_version_mismatch(str(err), address)) is not None:
            raise ClusterError(mismatch) from err
        raise ClusterError(
            f"the Ray cluster at {address} ($RAY_ADDRESS) does not answer, or does not let this process in: "
            f"{_first_line(err)} If it is gone, unset RAY_ADDRESS. If it asks for a token: {_TOKEN_HINT}"
        ) from err


def describe_version_mismatch(text: str, address: str) -> str | None:
    """What Ray says where its version or Python's differs between this process and the cluster; None otherwise."""
    found = re.findall(r"^ *(Ray|Python): (\S+)$", text, re.MULTILINE)
    if "Version mismatch" not in text or [name for name, _ in found] != ["Ray", "Python", "Ray", "Python"]:
        return None
    cluster_ray, cluster_python, own_ray, own_python = (version for _, version in found)
    return (
        f"the Ray cluster at {address} ($RAY_ADDRESS) has Python {cluster_python} and Ray {cluster_ray}, and this "
        f"process has Python {own_python} and Ray {own_ray}. A function travels only between the same ones: run the "
        f"script with Python {cluster_python} and ray=={cluster_ray}, or unset RAY_ADDRESS."
    )


def _may_show_token(address: str) -> bool:
    """Whether the cluster is on this machine, and its user has a token, which the next ``ray.init`` shows then."""
    return is_on_this_machine(address.rpartition(":")[0]) and enable_token_if_there()


def has_other_machines() -> bool:
    """Whether a node of the cluster that this process has joined is another machine than this one."""
    return ray.is_initialized() and any(
        node["Alive"] and not is_on_this_machine(node["NodeManagerAddress"]) for node in ray.nodes()
    )


def is_on_this_machine(host: str) -> bool:
    """Whether a host's name or address is one of this machine's own."""
    host = host.strip("[]")
    # An address is this machine's own if a socket can be bound to it.
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return True
    return False


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text if text.endswith(".") else f"{text}."


def keep_token_private() -> None:
    """See to it that only this user reads Ray's token; Ray itself would make the file with the umask's mode."""
    path = Path.home() / ".ray" / "auth_token"
    mode = os.environ.get("RAY_AUTH_MODE", "token").lower()
    if mode == "token" and not os.environ.get("RAY_AUTH_TOKEN") and not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        # A home directory that cannot be written to is Ray's to tell.
        with contextlib.suppress(OSError):
            make_private_directories(path.parent)
            create_private(path, secrets.token_hex(32).encode())
    with contextlib.suppress(OSError):
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


def forget_ray_checkpoints(root: StorageRoot, job_id: int) -> None:
    """Delete Ray Train's own list of the run's checkpoints: it refuses to start where one of them has expired.

    The manifests are the only record of checkpoints.
    """
    root.delete(job_key(job_id, "checkpoint_manager_snapshot.json"))


def train_run_config(root: StorageRoot, job_id: int, given: ray.train.RunConfig | None = None) -> ray.train.RunConfig:
    """The run's directory is ``jobs/<id>``, because Ray Train takes checkpoints only from below it.

    Args:
        given: the user's own, of which Ray's part is what the job does not do itself.
    """
    given = given or ray.train.RunConfig()
    return ray.train.RunConfig(
        callbacks=given.callbacks,
        worker_runtime_env=given.worker_runtime_env,
        logging_config=given.logging_config,
        name=str(job_id),
        storage_path=root.path_of("jobs"),
        storage_filesystem=open_arrow_filesystem(root),
    )
