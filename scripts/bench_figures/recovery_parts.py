"""Where the time between a kill and the next step went, from what the job and the ranks wrote down."""

from __future__ import annotations

from bench_figures.interrupted_training import NUM_RANKS, JobTraining
from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.jobs.events import read_events
from periflow_ray.store.root import StorageRoot


def describe_parts(training: JobTraining, killed_unix_s: float, new_step_unix_s: float) -> str:
    """``+0.31 attempt ended, +0.62 next attempt met, ...``: seconds after the kill, the later rank's."""
    root = StorageRoot(training.cluster.env["PERIFLOW_STORAGE"])
    events = [event for event in read_events(root, training.job_id) if event.time_unix_s > killed_unix_s]
    points = [
        ("attempt ended" if event.kind == "attempt_failed" else event.text, event.time_unix_s) for event in events
    ]
    for record in read_attempts(root, training.job_id):
        points += [
            (f"attempt {record.number} {what}", time_unix_s)
            for what, time_unix_s in (("recorded as ended", record.ended_unix_s), ("met", record.started_unix_s))
            if time_unix_s is not None
        ]
    for rank in range(NUM_RANKS):
        points += [(f"rank {rank} {m.what}", m.time_unix_s) for m in training.marks(rank) if m.step is None]
    points.append(("first step", new_step_unix_s))
    shown = sorted((at, what) for what, at in points if killed_unix_s < at <= new_step_unix_s)
    return ", ".join(f"+{at - killed_unix_s:.2f} {what}" for at, what in shown)
