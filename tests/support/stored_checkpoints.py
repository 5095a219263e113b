"""Checkpoints for the store's tests, saved the way that nodes and monitor save them, and a root that breaks off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from periflow_ray.errors import StorageError
from periflow_ray.store.checkpoints import (
    Manifest,
    begin,
    checkpoint_key,
    choose_name,
    commit,
    describe_tree,
    merge_contents,
)
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import upload_file
from support.trees import write_tree

CREATED_UNIX_S = 1_700_000_000.5
STEP_10 = "step-00000010"
STEP_20 = "step-00000020"


def save(
    root: StorageRoot,
    tmp_path: Path,
    contents_by_node: Mapping[int, Mapping[str, bytes]],
    *,
    step: int = 10,
    job_id: int = 1,
    previous: Manifest | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Manifest:
    """What the nodes and the monitor do together: begin, describe, merge, upload or copy, commit."""
    name = choose_name(root, job_id, step)
    begin(root, job_id, name, step, attempt=1)
    snapshots = {
        node_rank: write_tree(tmp_path / f"snapshot-{job_id}-{name}-{node_rank}", contents)
        for node_rank, contents in contents_by_node.items()
    }
    plan = merge_contents({node_rank: describe_tree(snapshot) for node_rank, snapshot in snapshots.items()}, previous)
    planned = plan.files
    for file in planned:
        key = checkpoint_key(job_id, name, file.key)
        if file.copy_from is not None:
            root.copy_file(checkpoint_key(job_id, file.copy_from), key)
        else:
            upload_file(root, snapshots[file.node_rank] / file.path, key)
    manifest = Manifest(
        checkpoint=name,
        job_id=job_id,
        step=step,
        attempt=1,
        world_size=4,
        num_nodes=len(contents_by_node),
        created_unix_s=CREATED_UNIX_S,
        files=tuple(file.as_stored() for file in planned),
        metrics={"loss": 0.5} if metrics is None else metrics,
        created_by="ada",
    )
    commit(root, manifest)
    return manifest


class BreakingRoot(StorageRoot):
    """A storage root that does ``num_left`` changes and then no more, as for a process that is killed.

    The deletion of several keys that it breaks off in has deleted one of them.
    """

    def __init__(self, uri: str, num_left: int) -> None:
        super().__init__(uri)
        self.num_left = num_left

    def write_bytes(self, key: str, content: bytes) -> None:
        self._count(key)
        super().write_bytes(key, content)

    def delete(self, prefix: str) -> None:
        if self.num_left == 0 and self.list_names(prefix):
            super().delete(f"{prefix}/{min(self.list_files(prefix))}")
        self._count(prefix)
        super().delete(prefix)

    def _count(self, key: str) -> None:
        if self.num_left == 0:
            raise StorageError(f"no more changes, not to '{key}' either")
        self.num_left -= 1
