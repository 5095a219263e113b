"""A machine whose network is cut without a word: the job goes on without it, and it cannot harm the job."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
from support.namespace_cluster import RayCluster
from support.namespaces import Machine
from support.workbench import wait_until

from periflow_ray import jobs
from periflow_ray.jobs.attempts import AttemptRecord, read_attempts
from periflow_ray.jobs.logs import read_logs
from periflow_ray.store import checkpoints
from periflow_ray.store.root import StorageRoot

pytestmark = pytest.mark.ray

NUM_STEPS = 400
SAVE_EVERY = 50
# Ray takes about 6 s to give a silent machine up.
SHORT_CUT_S = 3.0
# Every step's state follows from the one before: a step that is lost, or made twice, changes the last one.
SCRIPT = f"""
import hashlib, json, os, socket, time
from pathlib import Path
import periflow_ray as pf
directory = Path(os.environ["CKPT_DIR"])
rank = os.environ["RANK"]
path = directory / f"state-{{rank}}.json"
step, state = json.loads(path.read_text()) if path.exists() else (0, rank)
pf.init(total_train_steps={NUM_STEPS})
while step < {NUM_STEPS}:
    with pf.train_step():
        state = hashlib.sha256(f"{{state}} {{step}}".encode()).hexdigest()
        time.sleep(0.02)
    step += 1
    print(socket.gethostname(), rank, step)
    if step % {SAVE_EVERY} == 0:
        path.write_text(json.dumps([step, state]))
        pf.upload_checkpoint()
"""
TEMPLATE = """\
name: cut-off
vm: azure-16gb-v100-1g-eastus-spot
num_devices: 2
job_setting:
  type: custom
  launch_mode: device
  docker:
    image: friendliai/periflow:sdk
    command: |
      cd /workspace/app && python main.py
  resources:
    cpus: 1
  workspace:
    mount_path: /workspace
checkpoint:
  output_checkpoint_dir: /workspace/ckpt
max_failures: 3
"""


def expected_state(rank: int) -> str:
    state = str(rank)
    for step in range(NUM_STEPS):
        state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
    return state


class RunningJob:
    """A job on two of the cluster's three workers, with a committed checkpoint; all see the storage root, as on NFS."""

    def __init__(self, cluster: RayCluster, base_dir: Path) -> None:
        self.cluster = cluster
        self.root = StorageRoot(str(base_dir / "storage"))
        self._base_dir = base_dir
        workspace, template = base_dir / "app", base_dir / "pf-template.yml"
        workspace.mkdir()
        (workspace / "main.py").write_text(SCRIPT)
        template.write_text(TEMPLATE)
        started = self.run("submit", "--no-follow", "-f", template, "-d", workspace)
        assert started.startswith("Job ("), started
        self.job_id = int(started.split("(", 1)[1].split(")", 1)[0])
        wait_until(lambda: checkpoints.latest_committed(self.root, self.job_id) is not None, "a checkpoint")

    def run(self, *arguments: object) -> str:
        """Run ``periflow-ray`` on the cluster's head; what it prints."""
        outcome = self.cluster.run(*arguments, "--storage", self.root.uri)
        assert outcome.exit_code == 0, outcome
        return outcome.stdout

    def machine_of(self, rank: int) -> Machine:
        """Where a rank runs."""
        wanted = f"RANK={rank}".encode()
        for worker in self.cluster.workers:
            for pid in find_ranks(worker):
                if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    return worker
        raise AssertionError(f"rank {rank} does not run")

    def read_attempts(self) -> list[AttemptRecord]:
        return read_attempts(self.root, self.job_id)

    def has_ended(self) -> bool:
        return jobs.read_state(self.root, self.job_id).has_ended

    def check_result(self) -> None:
        """It succeeded, every checkpoint is whole, and the last one is that of an undisturbed run."""
        state = jobs.read_state(self.root, self.job_id)
        assert state.status == "success", state
        committed = checkpoints.list_committed(self.root, self.job_id)
        assert [manifest.step for manifest in committed] == list(range(SAVE_EVERY, NUM_STEPS + 1, SAVE_EVERY))
        for manifest in committed:
            target = self._base_dir / manifest.checkpoint
            checkpoints.restore(self.root, manifest, 0, target)
            states = [json.loads((target / f"state-{rank}.json").read_text()) for rank in range(2)]
            assert [step for step, _ in states] == [manifest.step, manifest.step]
        assert [state for _, state in states] == [expected_state(0), expected_state(1)]


def find_ranks(machine: Machine) -> list[int]:
    return [pid for pid, command in machine.find_processes().items() if command == "python main.py"]


@pytest.fixture
def job(cluster: RayCluster, tmp_path: Path) -> RunningJob:
    return RunningJob(cluster, tmp_path)


# In this order, because a machine that was given up has to be started again for the next test.


def test_a_cut_of_a_few_seconds_changes_nothing(job: RunningJob) -> None:
    blinking = job.machine_of(1)
    job.cluster.network.cut(blinking)
    # The length of the cut is what is tried here.
    time.sleep(SHORT_CUT_S)
    job.cluster.network.connect(blinking)
    wait_until(job.has_ended, "the job ends")
    job.check_result()


def test_a_machine_that_comes_back_when_it_is_given_up_harms_nothing(job: RunningJob) -> None:
    lost = job.machine_of(1)
    job.cluster.network.cut(lost)
    wait_until(lambda: job.read_attempts()[0].ended_unix_s is not None, "the loss is noticed")
    # What it had to say to the job's monitor arrives now, while the next attempt begins.
    job.cluster.network.connect(lost)
    wait_until(job.has_ended, "the job ends")
    job.check_result()
    first, second = job.read_attempts()
    assert (first.cause, second.cause) == ("lost", None)


def test_a_machine_that_is_cut_off_is_replaced_and_harms_nothing(
    job: RunningJob, record_property: pytest.RecordProperty
) -> None:
    lost = job.machine_of(1)
    job.cluster.network.cut(lost)
    cut_unix_s = time.time()
    wait_until(job.has_ended, "the job ends")
    # It knows nothing of this and sees the storage root all the time, but does not go on for ever.
    wait_until(lambda: not find_ranks(lost), "the ranks of the lost machine end")
    job.check_result()
    first, second = job.read_attempts()
    assert (first.cause, first.text) == ("lost", "node 1 was lost: its agent or its machine died")
    assert (second.cause, second.resumed_step) == (None, first.resumable_step)
    assert "node 1 was lost" in job.run("job", "view", job.job_id)
    assert second.first_step_unix_s is not None
    record_property("cut_to_first_step_s", round(second.first_step_unix_s - cut_unix_s, 1))
    # The lost machine wrote to the log of node 1, too.
    lines = [line.text.split() for line in read_logs(job.root, job.job_id) if line.node_rank is not None]
    resumed = [str(step) for step in range(second.resumed_step + 1, NUM_STEPS + 1)]
    assert [step for host, rank, step in lines if rank == "1" and host != lost.name] == resumed
