"""Checkpoints for tests to look at, beside the sample jobs."""

from __future__ import annotations

from pathlib import Path

from periflow_ray.store.checkpoints import Manifest, begin, checkpoint_key, commit, describe_tree, merge_contents
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import upload_file
from support.sample_jobs import NEW_YEAR_UNIX_S
from support.trees import write_tree

NODES = {
    0: {"model.pt": b"w" * 1500, "shards/0.pt": b"shard", "rng": b"0"},
    1: {"model.pt": b"w" * 1500, "rng": b"1"},
}
ID = "2/step-00000400"


def write_sample_checkpoints(root: StorageRoot, scratch_dir: Path) -> None:
    """Job 2 has a committed checkpoint of two nodes, job 3 one on its way; job 1 has a partial one as a sample job."""
    snapshots = {rank: write_tree(scratch_dir / f"node-{rank}", contents) for rank, contents in NODES.items()}
    planned = merge_contents({rank: describe_tree(snapshot) for rank, snapshot in snapshots.items()}).files
    for file in planned:
        upload_file(root, snapshots[file.node_rank] / file.path, checkpoint_key(2, "step-00000400", file.key))
    metrics = {"loss": 0.512345678, "acc": 0.9, "lr": 0.001, "epoch": 3}
    files = tuple(file.as_stored() for file in planned)
    commit(root, Manifest("step-00000400", 2, 400, 1, 4, 2, NEW_YEAR_UNIX_S, files, metrics, "kim"))
    begin(root, 3, "step-00000007", step=7, attempt=1)
