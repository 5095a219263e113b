"""Machines of the cluster that Ray was told will go soon."""

from __future__ import annotations

import asyncio
import time

import ray

from periflow_ray.runtime import ray_private

# Ray's 0 means that no deadline was given.
DEFAULT_NOTICE_S = 30.0


async def read_draining_nodes() -> dict[str, float]:
    """Ray's node id in hex -> the Unix time in seconds at which the machine goes; empty if Ray cannot say."""
    try:
        found = await asyncio.to_thread(ray_private.read_draining_nodes)
    except (ray.exceptions.RayError, RuntimeError, OSError):
        return {}
    return {node: (ms / 1000 if ms else time.time() + DEFAULT_NOTICE_S) for node, ms in found.items()}
