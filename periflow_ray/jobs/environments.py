"""In which Python a job's command ran on each node, and with which packages.

jobs/<job>/environment/node-<rank>.json
"""

from __future__ import annotations

from dataclasses import dataclass

from periflow_ray.store.documents import OnUnreadable, read_document, read_each, write_document
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot


@dataclass(frozen=True)
class EnvironmentRecord:
    """The Python of a node's command.

    Args:
        python: the interpreter; empty where an image has none.
        version: ``3.11.7``.
        environment: hash by which the environment of ``job_setting.python`` is kept on the node; None without one.
        has_cluster_packages: whether the cluster's packages are found, too.
        packages: ``name==version`` of the environment; where there is none, of the image or of the cluster.
        installed: ``name==version`` of what the command itself installed.
        image: the image that it ran in, by name and content: ``python:3.12 (sha256:...)``; None without one.
    """

    node_rank: int
    python: str
    version: str
    environment: str | None
    has_cluster_packages: bool
    packages: tuple[str, ...]
    installed: tuple[str, ...] = ()
    image: str | None = None


def write_environment(root: StorageRoot, job_id: int, record: EnvironmentRecord) -> None:
    """Record a node's, or replace what was recorded of it."""
    write_document(root, job_key(job_id, "environment", f"node-{record.node_rank}.json"), record)


def read_environments(
    root: StorageRoot, job_id: int, on_unreadable: OnUnreadable | None = None
) -> list[EnvironmentRecord]:
    """What was recorded, by node; empty for a job that has not begun."""
    keys = [job_key(job_id, "environment", name) for name in root.list_names(job_key(job_id, "environment"))]
    records = read_each(lambda key: read_document(root, key, EnvironmentRecord), keys, on_unreadable)
    return sorted(records, key=lambda record: record.node_rank)
