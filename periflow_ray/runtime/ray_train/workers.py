"""What a member has to do with Ray Train: its place in the worker group, and the checkpoint that Ray's result names."""

from __future__ import annotations

import ray
import ray.train

from periflow_ray.runtime.monitor.client import MonitorClient
from periflow_ray.runtime.monitor.contract import MemberFacts
from periflow_ray.store import checkpoints
from periflow_ray.store.arrow import open_arrow_filesystem
from periflow_ray.store.root import StorageRoot


def describe_worker(*, node_rank: int, port: int, noun: str, process: str) -> MemberFacts:
    """This Ray Train worker as a member; see ``MemberFacts``."""
    return MemberFacts(
        member=ray.train.get_context().get_world_rank(),
        num_members=ray.train.get_context().get_world_size(),
        node_rank=node_rank,
        address=ray.util.get_node_ip_address(),
        port=port,
        ray_node_id=ray.get_runtime_context().get_node_id(),
        noun=noun,
        process=process,
    )


def worker_group() -> str:
    """What tells this worker's group from others of the job."""
    group: str = ray.get_runtime_context().get_placement_group_id()
    return group


def report_newest(root: StorageRoot, monitor: MonitorClient, worker: int) -> None:
    """Give the job's newest checkpoint to Ray Train's result, once all members have left.

    Collective: call on all workers, because ``ray.train.report`` is a barrier. Each report takes as long as Ray Train
    polls its workers, so there is one.
    """
    newest = monitor.newest_commit()
    if newest is None:
        return
    assert newest.job_id is not None
    metrics = {name: value for name, value in newest.metrics.items() if isinstance(value, int | float | str)}
    ray.train.report(
        {**metrics, "step": newest.step},
        checkpoint=as_ray_checkpoint(root, newest.job_id, newest.checkpoint) if worker == 0 else None,
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
    )


def as_ray_checkpoint(root: StorageRoot, job_id: int, name: str) -> ray.train.Checkpoint:
    """A committed checkpoint as Ray Train names it: the directory with its files."""
    path = root.path_of(checkpoints.checkpoint_key(job_id, name, "files"))
    return ray.train.Checkpoint(path, filesystem=open_arrow_filesystem(root))
