"""A sweep of 10,000 trials of which 1,000 have ended: what its commands and its driver take, against one of two trials.

The trials that have ended are written through the same classes as the driver's; what is measured is real.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from statistics import median

from bench_figures.embedded_cluster import EmbeddedCluster, embedded_cluster
from bench_figures.programs import venv_program
from bench_figures.row import FigureError, Goal, Row
from periflow_ray import jobs
from periflow_ray.jobs import JobProgress, JobState, write_progress, write_state
from periflow_ray.plan import JobPlan
from periflow_ray.processes.keeper import find_descendants
from periflow_ray.store.documents import read_document
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.segments import read_lines
from periflow_ray.sweeps.journal import Journal, read_trials
from periflow_ray.sweeps.trials import make_trial_job

NUM_TRIALS = 10_000
NUM_ENDED = 1_000
NUM_REPORTS = 30
NUM_REPEATS = 3
TIMEOUT_S = 120.0
TIME_GOAL = Goal("<", 3.0, "s")
MEMORY_GOAL = Goal("<", 1024.0, "MiB")
# Each of these tells of one change.
LINES_GOAL = Goal("<=", 1.0)

# A trial that lasts until it is stopped.
_SCRIPT = """
import os, time
import periflow_ray as pf

pf.init()
while not pf.is_emergency_save():
    with pf.train_step():
        time.sleep(0.2)
    pf.metric({"loss": float(os.environ["x"])})
"""
_TEMPLATE = """\
name: sweep-10000
vm: local
num_devices: 1
job_setting: {type: custom, docker: {command: "cd /workspace/app && python main.py $x"}}
checkpoint: {output_checkpoint_dir: /workspace/ckpt}
"""


def measure_sweep_10000() -> list[Row]:
    """Seconds of the commands, MiB of the driver, and lines of the journal for each change."""
    with embedded_cluster() as cluster:
        # It starts the cluster, and warms the files.
        _submit(cluster, 2)
        small_s, small = _submit(cluster, 2)
        _run_some_trials(cluster, small, 1)
        small_mib = _read_peak_mib(cluster, small)
        _stop(cluster, small)
        submit_s, number = _submit(cluster, NUM_TRIALS)
        _run_some_trials(cluster, number, 1)
        _stop(cluster, number)
        root = StorageRoot(cluster.env["PERIFLOW_STORAGE"])
        _write_ended_trials(root, number)
        asked = [
            Row(f"sweep_10000_{name}", ours, baseline, "s", ours / baseline, TIME_GOAL)
            for name, ours, baseline in (
                ("view", _time(cluster, "sweep", "view", number), _time(cluster, "sweep", "view", small)),
                ("best", _time(cluster, "sweep", "best", number), _time(cluster, "sweep", "best", small)),
                ("list", _time(cluster, "sweep", "list"), _time(cluster, "--help")),
                ("job_list", _time(cluster, "job", "list"), _time(cluster, "--help")),
            )
        ]
        num_lines = len(_read_events(root, number))
        resume_s, small_resume_s = _resume(cluster, number), _resume(cluster, small)
        _run_some_trials(cluster, number, NUM_ENDED + 2)
        mib = _read_peak_mib(cluster, number)
        _stop(cluster, number)
        _stop(cluster, small)
        lines = _read_events(root, number)[num_lines:]
        trials = read_trials(root, number)
        num_made = sum(
            job.record.sweep == int(number) for job in jobs.read_jobs(root, map(int, root.list_names("jobs")))
        )
        if num_made != len(trials) or not NUM_ENDED < len(trials) < NUM_ENDED + 10:
            raise FigureError(f"{num_made} trials have documents, and {len(trials)} have begun")
        # A beginning or an end of a trial, or a step that it reported: each is told once.
        changes = {(line["kind"], line["trial"], line.get("step"), line.get("tune")) for line in lines}
    return [
        Row("sweep_10000_submit", submit_s, small_s, "s", submit_s / small_s, TIME_GOAL),
        *asked,
        Row("sweep_10000_resume", resume_s, small_resume_s, "s", resume_s / small_resume_s, TIME_GOAL),
        Row("sweep_10000_memory", mib, small_mib, "MiB", mib / small_mib, MEMORY_GOAL),
        Row("sweep_10000_lines", len(lines), len(changes), "lines", len(lines) / len(changes), LINES_GOAL),
    ]


def _submit(cluster: EmbeddedCluster, num_trials: int) -> tuple[float, str]:
    """Seconds of the command, and the sweep's number."""
    workspace = cluster.directory / "app"
    workspace.mkdir(exist_ok=True)
    (workspace / "main.py").write_text(_SCRIPT)
    (cluster.directory / "template.yml").write_text(_TEMPLATE)
    sweep = {
        "metric": "loss",
        "mode": "min",
        "num_trials": num_trials,
        "max_concurrent": 1,
        "stop": {"step": 5},
        "parameters": {"x": {"uniform": [1, 10]}},
    }
    (cluster.directory / "sweep.json").write_text(json.dumps(sweep))
    files = ["-f", cluster.directory / "template.yml", "--sweep", cluster.directory / "sweep.json", "-d", workspace]
    began_s = time.monotonic()
    answer = cluster.run("sweep", "run", "--local", "--no-follow", "--yes", *map(str, files), timeout_s=TIMEOUT_S)
    return time.monotonic() - began_s, answer.partition("(")[2].partition(")")[0]


def _time(cluster: EmbeddedCluster, *command: str) -> float:
    """Seconds of a command; the median of some runs."""
    times = []
    for _ in range(NUM_REPEATS):
        began_s = time.monotonic()
        cluster.run(*command, timeout_s=TIMEOUT_S)
        times.append(time.monotonic() - began_s)
    return median(times)


def _resume(cluster: EmbeddedCluster, number: str) -> float:
    began_s = time.monotonic()
    cluster.run("sweep", "resume", number, "--no-follow", timeout_s=TIMEOUT_S)
    return time.monotonic() - began_s


def _stop(cluster: EmbeddedCluster, number: str) -> None:
    cluster.run("sweep", "stop", number, timeout_s=TIMEOUT_S)


def _run_some_trials(cluster: EmbeddedCluster, number: str, num_trials: int) -> None:
    """Wait until so many trials have ended."""
    root = StorageRoot(cluster.env["PERIFLOW_STORAGE"])
    deadline_s = time.monotonic() + TIMEOUT_S
    while sum(trial.is_final for trial in read_trials(root, int(number)).values()) < num_trials:
        if time.monotonic() > deadline_s:
            raise FigureError(f"{num_trials} trials of sweep {number} did not end within {TIMEOUT_S:.0f} s")
        time.sleep(0.5)


def _write_ended_trials(root: StorageRoot, number: str) -> None:
    """As the driver and its agents would have left them."""
    sweep_id = int(number)
    plan, record = read_document(root, job_key(sweep_id, "plan.json"), JobPlan), jobs.read_record(root, sweep_id)
    journal = Journal(root, sweep_id)
    while len(journal.trials) < NUM_ENDED:
        trial, x = len(journal.trials) + 1, 1 + math.fmod(len(journal.trials) * math.pi, 9)
        job_id = jobs.claim_job_id(root, None if trial == 1 else max(journal.trials[trial - 1].job_ids))
        journal.begin(trial, job_id, {"x": x}, f"tune-{trial}")
        make_trial_job(root, job_id, plan, record, number=trial, parameters={"x": x}, device_share=1.0)
        for step in range(1, NUM_REPORTS + 1):
            journal.report(trial, step, x / step)
        journal.end(trial, "success", None, 1)
        write_progress(root, job_id, JobProgress(NUM_REPORTS, NUM_REPORTS, 10.0, {"loss": x / NUM_REPORTS}))
        now_unix_s = time.time()
        write_state(root, job_id, JobState("success", now_unix_s - 10, now_unix_s, now_unix_s, attempt=1))
    journal.flush()


def _read_events(root: StorageRoot, number: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in read_lines(root, job_key(int(number), "journal"))]


def _read_peak_mib(cluster: EmbeddedCluster, number: str) -> float:
    """The most memory that the driver of a sweep has had so far."""
    for pid in find_descendants(cluster.supervisor_pid):
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if "periflow_ray.runtime.driver" in words and words[words.index("--job-id") + 1] == number:
            status = Path(f"/proc/{pid}/status").read_text()
            return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    raise FigureError(f"the driver of sweep {number} does not run: {venv_program('periflow-ray')} sweep view {number}")
