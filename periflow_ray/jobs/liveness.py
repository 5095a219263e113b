"""Whether a job's driver lives, by what it does: no clock of another machine is compared with one of this machine.

The time in a heartbeat is its writer's. Clocks differ, and a storage may take nothing for a while; so a view may say
that there was no sign of life for long, but nothing is done to a job before its heartbeat was watched.
"""

from __future__ import annotations

import dataclasses
import sys
import time

from periflow_ray.jobs.events import EventWriter
from periflow_ray.jobs.records import HEARTBEAT_INTERVAL_S, JobState, read_state, read_written_state, write_state
from periflow_ray.store.root import StorageRoot

# A driver that lives has written several times in between.
WATCH_S = 4 * HEARTBEAT_INTERVAL_S
_POLL_S = 0.5


def find_end(root: StorageRoot, job_id: int, reason: str | None = None) -> JobState:
    """How a job stands: as it said itself, or failed, which is recorded then, if its heartbeat stands still.

    Takes up to ``WATCH_S`` where a job says that it runs, and a note about it on standard error.

    Args:
        reason: what is known of the driver's death, if it is dead.
    Raises:
        NotFoundError: there is no such job.
        DocumentError: its state cannot be read.
    """
    first = state = read_written_state(root, job_id)
    if state.has_ended:
        return state
    print(f"Job ({job_id}) has not said that it ended; looks for a sign of life.", file=sys.stderr, flush=True)
    deadline_s = time.monotonic() + WATCH_S
    while not state.has_ended and state.heartbeat_unix_s == first.heartbeat_unix_s:
        if time.monotonic() > deadline_s:
            return _record_death(root, job_id, state, reason)
        time.sleep(_POLL_S)
        state = read_written_state(root, job_id)
    return state


def _record_death(root: StorageRoot, job_id: int, state: JobState, reason: str | None) -> JobState:
    seems = read_state(root, job_id)
    text = reason or (seems.message if seems.has_ended else None)
    message = text or f"the job's driver died: no sign of life while it was watched for {WATCH_S:.0f} s"
    # Nobody knows when the driver ended, but it was after this.
    ended_unix_s = state.heartbeat_unix_s or time.time()
    EventWriter(root, job_id, "submitter").write("failed", message, state.attempt)
    ended = dataclasses.replace(state, status="failed", ended_unix_s=ended_unix_s, message=message)
    write_state(root, job_id, ended)
    return ended
