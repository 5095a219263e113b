"""A job whose final state tells of every step that was lost or made twice: each step hashes the state before it."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from periflow_ray import jobs
from periflow_ray.jobs.attempts import AttemptRecord, read_attempts
from periflow_ray.jobs.events import read_events
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints import Manifest
from periflow_ray.store.root import StorageRoot
from support.workbench import wait_until

# One GPU, so that two devices are two machines.
VM = "azure-16gb-v100-1g-eastus-spot"
NUM_RANKS = 2
END_TIMEOUT_S = 240
_SCRIPT = """
import hashlib, json, os, socket, time
from pathlib import Path
from types import SimpleNamespace
import periflow_ray as pf

chain = SimpleNamespace(**json.loads(CHAIN))
rank = os.environ["RANK"]
writer = "0" if chain.is_elastic else rank
directory = Path(os.environ["CKPT_DIR"])
path = directory / f"state-{writer}.json"
step, state, starts = json.loads(path.read_text()) if path.exists() else (0, writer, [])
starts.append([step, int(os.environ["WORLD_SIZE"]), int(os.environ["NUM_NODES"])])
is_slow = len(starts) <= chain.num_slow_starts
pf.init(total_train_steps=chain.num_steps)
time.sleep(chain.start_s if is_slow else 0)
while step < chain.num_steps:
    with pf.train_step():
        state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
        is_in_hurry = os.path.exists(chain.hurry_path)
        time.sleep(chain.step_time_s if is_slow and not is_in_hurry else 0)
    step += 1
    if chain.is_chatty:
        print(socket.gethostname(), rank, step)
    is_save_due = step % chain.save_every == 0 if chain.save_at is None else step == chain.save_at
    if step == chain.num_steps or is_save_due and not is_in_hurry or chain.asks and pf.is_emergency_save():
        time.sleep(chain.save_time_s if is_slow else 0)
        if chain.emergency_save_time_s and pf.is_emergency_save():
            time.sleep(chain.emergency_save_time_s)
        while os.path.exists(chain.slow_save_path) and pf.is_emergency_save():
            time.sleep(0.1)
        if chain.weights_bytes:
            (directory / f"weights-{rank}").write_bytes(bytes([step % 251]) * chain.weights_bytes)
        if rank == writer:
            path.write_text(json.dumps([step, state, starts]))
        pf.upload_checkpoint()
"""


@dataclass(frozen=True)
class HashChain:
    """What each rank does.

    Args:
        num_steps: all steps; a checkpoint is saved after the last one.
        step_time_s, start_s, save_time_s: time that a step takes, that passes before the first one, and that passes
            before a checkpoint is there.
        save_every: in steps.
        save_at: the only step, beside the last one, at which it saves by itself.
        emergency_save_time_s: what a save takes that the job asked for.
        num_slow_starts: how often it starts before these times are zero.
        asks: whether it asks ``is_emergency_save()``.
        weights_bytes: what each rank saves beside its state, other ones each time.
        is_elastic: the state of rank 0 is the job's, so that any number of ranks can go on.
        is_chatty: each rank prints its host's name, its number and each step.
        hurry_path: as soon as this file is there, it takes no time and saves after the last step only.
        slow_save_path: as long as this file is there, a save that the job asked for takes.
    """

    num_steps: int = 300
    step_time_s: float = 0.03
    start_s: float = 0.0
    save_time_s: float = 0.0
    save_every: int = 50
    save_at: int | None = None
    emergency_save_time_s: float = 0.0
    num_slow_starts: int = 1
    asks: bool = True
    weights_bytes: int = 0
    is_elastic: bool = False
    is_chatty: bool = False
    hurry_path: str = ""
    slow_save_path: str = ""

    def script(self) -> str:
        """The job's ``main.py``."""
        return _SCRIPT.replace("CHAIN", repr(json.dumps(asdict(self))))

    def final_state(self, rank: int) -> str:
        """Of an undisturbed run."""
        state = str(rank)
        for step in range(self.num_steps):
            state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
        return state

    def read_states(self, root: StorageRoot, manifest: Manifest, directory: Path) -> list[tuple[int, str]]:
        """Step and state of each rank in a checkpoint, which goes into a new directory."""
        checkpoints.restore(root, manifest, 0, directory)
        saved = [json.loads((directory / f"state-{rank}.json").read_text()) for rank in range(NUM_RANKS)]
        return [(step, state) for step, state, _ in saved]

    def write(self, directory: Path) -> tuple[Path, Path]:
        """Write the template and the workspace; returns both paths."""
        workspace = directory / "app"
        workspace.mkdir()
        (workspace / "main.py").write_text(self.script())
        template = directory / "pf-template.yml"
        template.write_text(self.template())
        return template, workspace

    def template(self, vm: str = VM) -> str:
        """The job's template; ``vm`` has one device."""
        return f"""\
name: chain
vm: {vm}
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

    def assert_exact(self, root: StorageRoot, job_id: int, directory: Path) -> None:
        """Hold the last checkpoint against an undisturbed run."""
        manifest = checkpoints.latest_committed(root, job_id)
        assert manifest is not None
        assert manifest.step == self.num_steps
        expected = [(self.num_steps, self.final_state(rank)) for rank in range(NUM_RANKS)]
        assert self.read_states(root, manifest, directory / "final") == expected


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


def wait_for_notice(root: StorageRoot, job_id: int, deadline_unix_s: float, num_notices: int = 1) -> None:
    """Wait until a job has heard of so many notices, and until the last one's deadline."""

    def has_heard() -> bool:
        texts = [event.text for event in read_events(root, job_id) if event.kind == "note"]
        return sum("is taken away in" in text for text in texts) >= num_notices

    wait_until(has_heard, "the job has heard of it")
    # On a slow machine the deadline is over by then; the drain has begun all the same.
    wait_until(lambda: time.time() >= deadline_unix_s, "the deadline")


def find_checkpoint(root: StorageRoot, job_id: int, step: int) -> Manifest:
    """The checkpoint of a step."""
    return next(manifest for manifest in checkpoints.list_committed(root, job_id) if manifest.step == step)
