"""How a job tells the watcher of a machine that the machine may go: keys in Ray's internal key-value store.

``saving:<node id>:<job id>`` stands while a job writes an emergency checkpoint; ``saved:<node id>`` says that one is
committed. A machine that several jobs share is given back when no job is saving any more.
"""

from __future__ import annotations

import time
from typing import Protocol

from periflow_ray.runtime import ray_private

NAMESPACE = b"periflow"


class KeyValueStore(Protocol):
    """The reading side of Ray's GcsClient."""

    def internal_kv_get(self, key: bytes, namespace: bytes, *, timeout: float) -> bytes | None: ...

    def internal_kv_keys(self, prefix: bytes, namespace: bytes, *, timeout: float) -> list[bytes]: ...


def mark_saving(node_id_hex: str, job_id: int) -> None:
    """Say that a job has begun an emergency save that the node's machine must not leave before; needs ``ray.init``."""
    ray_private.put_key(make_saving_key(node_id_hex, job_id), _now(), NAMESPACE)


def mark_saved(node_id_hex: str, job_id: int | None = None) -> None:
    """Say that the emergency checkpoint for the node's loss is committed; needs ``ray.init``.

    Args:
        job_id: whose ``mark_saving`` is over; None for a job that made none.
    """
    ray_private.put_key(make_saved_key(node_id_hex), _now(), NAMESPACE)
    if job_id is not None:
        ray_private.delete_key(make_saving_key(node_id_hex, job_id), NAMESPACE)


def is_saved(store: KeyValueStore, node_id_hex: str, timeout_s: float) -> bool:
    """Whether a job has saved its work before the node's loss, and none is still at it."""
    if store.internal_kv_get(make_saved_key(node_id_hex), NAMESPACE, timeout=timeout_s) is None:
        return False
    return not store.internal_kv_keys(f"saving:{node_id_hex}:".encode(), NAMESPACE, timeout=timeout_s)


def make_saved_key(node_id_hex: str) -> bytes:
    return f"saved:{node_id_hex}".encode()


def make_saving_key(node_id_hex: str, job_id: int) -> bytes:
    return f"saving:{node_id_hex}:{job_id}".encode()


def _now() -> bytes:
    return str(time.time()).encode()
