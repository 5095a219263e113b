"""Trials whose last state tells of every step that was lost or made twice, and from whom a trial had which step."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from periflow_ray import jobs
from periflow_ray.plan import JobPlan
from periflow_ray.store.checkpoints import latest_committed, restore
from periflow_ray.store.checkpoints.pins import read_pins
from periflow_ray.store.documents import read_document
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.segments import read_lines
from periflow_ray.sweeps.journal import Trial, read_trials

# Each step hashes the state before it with its parameter, and its parameter is kept.
_SCRIPT = """
import hashlib, json, os, time
from pathlib import Path
import periflow_ray as pf

x = pf.hparams()["x"]
path = Path(os.environ["CKPT_DIR"]) / "state.json"
state, xs = json.loads(path.read_text()) if path.exists() else ("", [])
pf.init(total_train_steps=NUM_STEPS)
while len(xs) < NUM_STEPS:
    with pf.train_step():
        state = hashlib.sha256(f"{state} {len(xs)} {x!r}".encode()).hexdigest()
        time.sleep(STEP_TIME_S)
    xs.append(x)
    pf.metric({"loss": x / len(xs)})
    if len(xs) % 10 == 0 or pf.is_emergency_save():
        path.write_text(json.dumps([state, xs]))
        pf.upload_checkpoint()
"""
_TEMPLATE = """\
name: swept
vm: {vm}
num_devices: 1
max_failures: 1000
job_setting:
  type: custom
  launch_mode: device
  resources: {{cpus: 1}}
  docker: {{command: "cd /workspace/app && python main.py"}}
checkpoint: {{output_checkpoint_dir: /workspace/ckpt, keep_last: 1}}
"""


def write_sweep_files(directory: Path, num_steps: int, step_time_s: float, vm: str, sweep: object) -> list[str]:
    """Write the template, the sweep and the workspace; returns the options that name them."""
    workspace = directory / "app"
    workspace.mkdir(parents=True)
    script = _SCRIPT.replace("NUM_STEPS", str(num_steps)).replace("STEP_TIME_S", str(step_time_s))
    (workspace / "main.py").write_text(script)
    (directory / "pf-template.yml").write_text(_TEMPLATE.format(vm=vm))
    (directory / "sweep.yml").write_text(json.dumps(sweep))
    return ["-f", f"{directory}/pf-template.yml", "--sweep", f"{directory}/sweep.yml", "-d", str(workspace)]


def assert_sound(root: StorageRoot, sweep_id: int, num_steps: int, directory: Path) -> dict[int, Trial]:
    """Each trial ended once, with every step of those that came to their end; no job is none of theirs; no pin is left.

    The journal's lineage is that of the checkpoints.

    Args:
        directory: for the checkpoints that are looked at.
    """
    trials = read_trials(root, sweep_id)
    events = [json.loads(line) for line in read_lines(root, job_key(sweep_id, "journal"))]
    ends = Counter(event["trial"] for event in events if event["kind"] == "end" and event["status"] != "stopped")
    assert ends == dict.fromkeys(trials, 1)
    numbers = [int(name) for name in root.list_names("jobs")]
    made = sorted(job.record.job_id for job in jobs.read_jobs(root, numbers) if job.record.sweep == sweep_id)
    assert made == sorted(job_id for trial in trials.values() for job_id in trial.job_ids)
    for trial in trials.values():
        assert [clone.job_id for clone in trial.clones] == trial.job_ids[1:]
        for job_id in trial.job_ids:
            assert read_pins(root, job_id) == frozenset()
        if trial.status != "success":
            assert trial.status == "early", trial
            continue
        assert jobs.read_state(root, trial.job_ids[-1]).status == "success"
        steps = [step for step, _ in trial.reports]
        assert steps == sorted(set(steps))
        # What an agent had heard in its last seconds is lost with it, even where a checkpoint has the steps.
        assert steps[-1] == num_steps or (trial.num_attempts or 2) > 1
        newest = latest_committed(root, trial.job_ids[-1])
        assert newest is not None
        restore(root, newest, 0, directory / f"{sweep_id}-{trial.number}")
        state, xs = json.loads((directory / f"{sweep_id}-{trial.number}" / "state.json").read_text())
        assert xs == _expect_xs(root, trials.values(), trial.job_ids[-1], num_steps)
        assert state == _hash(xs)
    return trials


def _expect_xs(root: StorageRoot, trials: Iterable[Trial], job_id: int, num_steps: int) -> list[float]:
    """The parameter of each step up to one of a job, as the journal has its lineage."""
    clones = {clone.job_id: clone for trial in trials for clone in trial.clones}
    before: list[float] = []
    if job_id in clones:
        clone = clones[job_id]
        source = int(clone.checkpoint.partition("/")[0])
        assert any(trial.number == clone.donor and source in trial.job_ids for trial in trials)
        before = _expect_xs(root, trials, source, clone.step)
    parameters = read_document(root, job_key(job_id, "plan.json"), JobPlan).hparams or {}
    return before + [parameters["x"]] * (num_steps - len(before))


def _hash(xs: Sequence[float]) -> str:
    state = ""
    for step, x in enumerate(xs):
        state = hashlib.sha256(f"{state} {step} {x!r}".encode()).hexdigest()
    return state
