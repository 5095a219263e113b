"""From the notice that a node is taken away to a committed checkpoint of all ranks, and what steps that lost.

One job is given all notices, one after the other, as ``periflow-ray job drill N --notice 30s`` gives them; it goes on
with new workers after each. What nobody can do without, the step under way and the save itself, is the baseline; the
save is taken to last as long as the job's ordinary checkpoints do in the median, from the script's first line of it to
the commit.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from statistics import median

from bench_figures.embedded_cluster import embedded_cluster
from bench_figures.interrupted_training import NUM_RANKS, STEP_TIME_S, JobTraining
from bench_figures.programs import note
from bench_figures.row import Goal, Row
from periflow_ray.jobs import read_state
from periflow_ray.jobs.account import build_account
from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.jobs.requests import NoticeDrill, post_request
from periflow_ray.store.checkpoints import list_committed
from periflow_ray.store.root import StorageRoot

NUM_NOTICES = int(os.environ.get("PERIFLOW_BENCH_NUM_NOTICES", "20"))
NOTICE_S = 30
STEPS_PER_CHECKPOINT = 40
EXCESS_GOAL = Goal("<=", 1.5, "s")
ALL_GOAL = Goal(">=", 1)


@dataclass(frozen=True)
class Loss:
    """One notice: when it was given, when the save was committed, and how many steps were made again."""

    noticed_unix_s: float
    saved_unix_s: float
    num_lost_steps: int
    resumed_unix_s: float

    @property
    def save_s(self) -> float:
        """From the notice to the committed checkpoint."""
        return self.saved_unix_s - self.noticed_unix_s


def measure_notice_to_save() -> list[Row]:
    """Seconds beyond one step and the save, of the slowest notice; and how many notices cost no step."""
    with embedded_cluster() as cluster, JobTraining(cluster, STEPS_PER_CHECKPOINT) as job:
        root = StorageRoot(cluster.env["PERIFLOW_STORAGE"])
        job.wait_for_new_processes()
        losses = []
        for index in range(NUM_NOTICES):
            job.wait_for_checkpoint()
            losses.append(_give_notice(root, job, node_rank=index % NUM_RANKS))
        save_time_s = _usual_save_time_s(root, job, [loss.saved_unix_s for loss in losses])
    unavoidable_s = STEP_TIME_S + save_time_s
    excess_s = [loss.save_s - unavoidable_s for loss in losses]
    num_saved = sum(loss.num_lost_steps == 0 for loss in losses)
    note(
        f"notice_to_save: the save was committed {median(loss.save_s for loss in losses):.2f} s after the notice in "
        f"the median, {max(loss.save_s for loss in losses):.2f} s at most; beyond step and save "
        f"{median(excess_s):.2f} s and {max(excess_s):.2f} s; trained on "
        f"{median(loss.resumed_unix_s - loss.noticed_unix_s for loss in losses):.1f} s after the notice"
    )
    return [
        Row("notice_to_save_excess", max(excess_s), unavoidable_s, "s", max(excess_s) / unavoidable_s, EXCESS_GOAL),
        Row("notice_without_lost_step", num_saved, NUM_NOTICES, "runs", num_saved / NUM_NOTICES, ALL_GOAL),
    ]


def _give_notice(root: StorageRoot, job: JobTraining, node_rank: int) -> Loss:
    attempt = read_attempts(root, job.job_id)[-1].number
    noticed_unix_s = time.time()
    post_request(root, job.job_id, NoticeDrill(node_rank, NOTICE_S))
    resumed_unix_s = job.wait_for_new_processes(noticed_unix_s)
    records = {record.number: record for record in read_attempts(root, job.job_id)}
    resumed_step = records[attempt + 1].resumed_step
    account = build_account(list(records.values()), read_state(root, job.job_id), now_unix_s=time.time())
    told = next(entry.num_lost_steps for entry in account.attempts if entry.number == attempt)
    # What the ranks themselves wrote down counts as well as what the job's account says.
    num_lost_steps = max(told, job.last_step_before_restart(noticed_unix_s) - resumed_step)
    saved = next(m for m in list_committed(root, job.job_id) if m.step == resumed_step)
    return Loss(noticed_unix_s, saved.created_unix_s, num_lost_steps, resumed_unix_s)


def _usual_save_time_s(root: StorageRoot, job: JobTraining, left_out_unix_s: list[float]) -> float:
    """Seconds from the first line of a checkpoint in the script to its commit."""
    began = {mark.what: mark.time_unix_s for mark in job.marks(0) if mark.what.startswith("save-")}
    return median(
        manifest.created_unix_s - began[f"save-{manifest.step}"]
        for manifest in list_committed(root, job.job_id)
        if manifest.created_unix_s not in left_out_unix_s
    )
