"""The end of an attempt whose worker group broke, as Ray Train's controller tells it: workers died or raised errors."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

from periflow_ray.runtime.monitor.attempt import Attempt
from periflow_ray.runtime.monitor.checkpoint_board import CheckpointBoard


async def close_broken_group(
    attempt: Attempt,
    lost_workers: Collection[int],
    is_preempted: bool,
    member_noun: Literal["node", "rank"],
    announced_machines: Collection[str],
    board: CheckpointBoard,
    write_event: Callable[[str, str], None],
) -> bool:
    """Name the cause, and let the workers that live bring their checkpoints home before Ray Train ends them.

    Holds the board's condition.

    Args:
        lost_workers: members that died; empty if all of them only raised.
        is_preempted: whether Ray knows that a machine was taken away.
        announced_machines: Ray's ids of machines that were known to go.
    Returns:
        Whether it was an attempt that may be followed by another one.
    """
    has_begun = bool(attempt.members)
    is_done = attempt.has_everybody_left and attempt.cause is None
    if not has_begun or (is_done and not lost_workers):
        # Another attempt would come to the same error.
        return False
    # One that left before it died did as it was asked.
    lost = {member for member in lost_workers if member in attempt.members} - attempt.left
    if lost_workers:
        machines = {attempt.members[member].ray_node_id for member in lost}
        nodes = {attempt.node_of(member) for member in lost}
        is_announced = bool(machines & set(announced_machines) or nodes & attempt.drilled_nodes)
        is_preemption = is_preempted or is_announced
        has_news = _end_by_loss(attempt, lost, is_preemption, member_noun)
    else:
        # A worker that fails by itself has told so; one that cannot reach the monitor any more has not.
        has_news = attempt.end("lost", "a worker lost its connection to the job")
    if has_news:
        write_event("attempt_failed", f"attempt {attempt.number} ended: {attempt.text}")
    dead_nodes = {attempt.node_of(member) for member in lost if _brings_files(attempt, member)}
    for node_rank in dead_nodes:
        board.drop_node(node_rank)
    await board.wait_for_uploads(dead_nodes)
    for node_rank in attempt.present_nodes():
        # What the living ones still save would else be committed without its files.
        board.drop_node(node_rank)
    attempt.left.update(attempt.members)
    attempt.is_group_broken = True
    return True


def _end_by_loss(
    attempt: Attempt, lost: Collection[int], is_preemption: bool, member_noun: Literal["node", "rank"]
) -> bool:
    numbers = {attempt.node_of(member) if member_noun == "node" else member for member in lost}
    names = ", ".join(str(number) for number in sorted(numbers)) or "?"
    if is_preemption:
        return attempt.end("preemption", f"{member_noun} {names} was taken away")
    process = "agent" if member_noun == "node" else "process"
    return attempt.end("lost", f"{member_noun} {names} was lost: its {process} or its machine died")


def _brings_files(attempt: Attempt, member: int) -> bool:
    """Whether it is the first member on its node, which uploads for all of them."""
    node_rank = attempt.node_of(member)
    return member == min(other for other, facts in attempt.members.items() if facts.node_rank == node_rank)
