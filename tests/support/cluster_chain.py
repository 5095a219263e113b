"""A job whose final state tells of every step that was lost or made twice: each step hashes the state before it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from periflow_ray import jobs
from periflow_ray.jobs.attempts import AttemptRecord, read_attempts
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints import Manifest
from periflow_ray.store.root import StorageRoot
from support.workbench import wait_until

# One GPU, so that two devices are two machines.
VM = "azure-16gb-v100-1g-eastus-spot"
NUM_RANKS = 2
END_TIMEOUT_S = 240


@dataclass(frozen=True)
class Chain:
    """What each rank does.

    ``save_every`` is in steps; ``start_s`` passes before the first step, ``save_time_s`` before a checkpoint is there.
    What resumes has no time to pass.
    """

    num_steps: int = 300
    step_time_s: float = 0.03
    save_every: int = 50
    save_time_s: float = 0.0
    start_s: float = 0.0

    def script(self) -> str:
        """The job's ``main.py``."""
        return f"""
import hashlib, json, os, time
from pathlib import Path
import periflow_ray as pf
directory = Path(os.environ["CKPT_DIR"])
rank = os.environ["RANK"]
path = directory / f"state-{{rank}}.json"
is_resumed = path.exists()
step, state = json.loads(path.read_text()) if is_resumed else (0, rank)
pf.init(total_train_steps={self.num_steps})
wait = (lambda seconds: None) if is_resumed else time.sleep
wait({self.start_s})
while step < {self.num_steps}:
    with pf.train_step():
        state = hashlib.sha256(f"{{state}} {{step}}".encode()).hexdigest()
        wait({self.step_time_s})
    step += 1
    if step % {self.save_every} == 0 or pf.is_emergency_save():
        wait({self.save_time_s})
        path.write_text(json.dumps([step, state]))
        pf.upload_checkpoint()
"""

    def final_state(self, rank: int) -> str:
        """Of an undisturbed run."""
        state = str(rank)
        for step in range(self.num_steps):
            state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
        return state

    def write(self, directory: Path) -> tuple[Path, Path]:
        """Write the template and the workspace; returns both paths."""
        workspace = directory / "app"
        workspace.mkdir()
        (workspace / "main.py").write_text(self.script())
        template = directory / "pf-template.yml"
        template.write_text(
            f"""\
name: chain
vm: {VM}
num_devices: {NUM_RANKS}
max_failures: 3
job_setting:
  type: custom
  launch_mode: device
  resources:
    cpus: 1
  docker:
    image: friendliai/periflow:sdk
    command: |
      cd /workspace/app && python main.py
  workspace:
    mount_path: /workspace
checkpoint:
  output_checkpoint_dir: /workspace/ckpt
"""
        )
        return template, workspace

    def assert_exact(self, root: StorageRoot, job_id: int, directory: Path) -> None:
        """Hold the last checkpoint against an undisturbed run."""
        manifest = checkpoints.latest_committed(root, job_id)
        assert manifest is not None
        assert manifest.step == self.num_steps
        checkpoints.restore(root, manifest, 0, directory / "final")
        states = [json.loads((directory / "final" / f"state-{rank}.json").read_text())[1] for rank in range(NUM_RANKS)]
        assert states == [self.final_state(rank) for rank in range(NUM_RANKS)]


def wait_for_checkpoint(root: StorageRoot, job_id: int) -> None:
    """Wait until a job has anything to lose."""

    def has_committed() -> bool:
        state = jobs.read_state(root, job_id)
        assert not state.has_ended, state
        return checkpoints.latest_committed(root, job_id) is not None

    wait_until(has_committed, "a checkpoint", END_TIMEOUT_S)


def finish(root: StorageRoot, job_id: int) -> list[AttemptRecord]:
    """Wait for the job's success; returns its attempts."""
    wait_until(lambda: jobs.read_state(root, job_id).has_ended, "the job ends", END_TIMEOUT_S)
    state = jobs.read_state(root, job_id)
    assert state.status == "success", state
    return read_attempts(root, job_id)


def find_checkpoint(root: StorageRoot, job_id: int, step: int) -> Manifest:
    """The checkpoint of a step."""
    return next(manifest for manifest in checkpoints.list_committed(root, job_id) if manifest.step == step)
