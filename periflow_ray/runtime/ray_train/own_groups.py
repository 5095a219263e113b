"""The placement groups of a controller of Ray Train."""

from __future__ import annotations

import ray
from ray.util.placement_group import PlacementGroup

from periflow_ray.runtime import ray_private
from periflow_ray.runtime.ray_private import PlacementGroupFacts


def release_groups(controller_id: str) -> None:
    """Remove the placement groups of a controller that was killed; Ray itself does so only when its driver ends.

    Args:
        controller_id: its actor id in hex.
    """
    for group in _read_groups(controller_id):
        ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.group_id)))


def read_own_groups() -> list[PlacementGroupFacts]:
    return _read_groups(ray.get_runtime_context().get_actor_id())


def _read_groups(actor_id: str) -> list[PlacementGroupFacts]:
    """Ray's records of the placement groups that a controller made and has not removed."""
    return [group for group in ray_private.read_placement_groups() if group.creator_actor_id_hex == actor_id]
