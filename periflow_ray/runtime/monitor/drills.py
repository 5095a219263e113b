"""Rehearsed losses: what the monitor does for each kind of drill, and what a member does that it is about."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from signal import SIGKILL

from periflow_ray.jobs.requests import Drill, KillNodeDrill, KillRankDrill, NoticeDrill
from periflow_ray.runtime.monitor.context import JobContext
from periflow_ray.runtime.monitor.contract import Rehearse
from periflow_ray.runtime.monitor.draining import Draining


async def rehearse(drill: Drill, context: JobContext, draining: Draining) -> None:
    """The monitor's part: announce the loss where the drill has a notice, then let it happen."""
    attempt = context.attempt
    match drill:
        case NoticeDrill(node_rank, notice_s):
            attempt.drilled_nodes.add(node_rank)
            reason = f"drill: node {node_rank} is taken away in {notice_s:.0f} s"
            await draining.leave_nodes(attempt, [node_rank], reason, time.time() + notice_s)
            # As the cloud does: an attempt that has not ended by then loses the machine.
            drill = KillNodeDrill(node_rank)
        case KillRankDrill() | KillNodeDrill():
            # Without notice.
            pass
    if not attempt.is_ending:
        context.note(f"drill: kills {_describe_victim(drill)}")
        context.order(attempt, Rehearse(drill))


def die(drill: Drill, node_rank: int, pids: Mapping[int, int]) -> None:
    """A member's part: kill what the drill is about, if it is here.

    Args:
        node_rank: the member's node.
        pids: process of each of the member's ranks.
    """
    match drill:
        case KillRankDrill(rank):
            if rank in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pids[rank], SIGKILL)
        case KillNodeDrill(rank_of_node):
            if rank_of_node == node_rank:
                os.kill(os.getpid(), SIGKILL)
        case NoticeDrill():
            # The monitor turns it into a save and the end of the node.
            return


def _describe_victim(drill: KillRankDrill | KillNodeDrill) -> str:
    return f"rank {drill.rank}" if isinstance(drill, KillRankDrill) else f"node {drill.node_rank}"
