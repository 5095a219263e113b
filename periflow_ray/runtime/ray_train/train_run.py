"""How this project sets Ray Train up, for command jobs and function jobs alike."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from pathlib import Path

import ray
import ray.train

from periflow_ray.private_files import create_private, make_private_directories
from periflow_ray.runtime.ray_private import PlacementGroupCleanerCallback, TrainerHooks, keep_to_loopback
from periflow_ray.store.arrow import open_arrow_filesystem
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot

# The controller's polling interval; at Ray's default of 2 s every ray.train.report takes that long.
POLL_INTERVAL_S = 0.25
# A cluster that scales up needs minutes for new VMs; until then Ray Train waits and tries again.
GROUP_START_TIMEOUT_S = 900
# An elastic job starts when it was seen that there is room; if that was wrong, it looks again.
ELASTIC_GROUP_START_TIMEOUT_S = 60


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
    """Initialise Ray unless it is: join the cluster at ``$RAY_ADDRESS``, else start one on loopback."""
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
        return
    # The variable of the same meaning (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER) is read when Ray is imported, which user code
    # has done by now.
    keep_to_loopback()
    keep_token_private()
    ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING)


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


def train_run_config(root: StorageRoot, job_id: int) -> ray.train.RunConfig:
    """The run's directory is ``jobs/<id>``, because Ray Train takes checkpoints only from below it."""
    return ray.train.RunConfig(
        name=str(job_id),
        storage_path=root.path_of("jobs"),
        storage_filesystem=open_arrow_filesystem(root),
    )
