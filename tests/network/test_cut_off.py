"""A machine whose network is cut without a word: the job goes on without it, and it cannot harm the job."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from support.hash_chain import HashChain
from support.namespace_cluster import RayCluster
from support.namespaces import Machine
from support.workbench import wait_until

from periflow_ray import jobs
from periflow_ray.jobs.attempts import AttemptRecord, read_attempts
from periflow_ray.jobs.logs import read_logs
from periflow_ray.store import checkpoints
from periflow_ray.store.root import StorageRoot

pytestmark = pytest.mark.ray

# Ray takes about 6 s to give a silent machine up.
SHORT_CUT_S = 3.0
# It goes on as slowly as it began, on whatever machine it is.
CHAIN = HashChain(num_steps=400, step_time_s=0.02, num_slow_starts=sys.maxsize, is_chatty=True)


class RunningJob:
    """A job on two of the cluster's three workers, with a committed checkpoint; all see the storage root, as on NFS."""

    def __init__(self, cluster: RayCluster, base_dir: Path) -> None:
        self.cluster = cluster
        self.root = StorageRoot(str(base_dir / "storage"))
        self._base_dir = base_dir
        template, workspace = CHAIN.write(base_dir)
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
        assert [manifest.step for manifest in committed] == list(
            range(CHAIN.save_every, CHAIN.num_steps + 1, CHAIN.save_every)
        )
        for manifest in committed:
            states = CHAIN.read_states(self.root, manifest, self._base_dir / manifest.checkpoint)
            assert [step for step, _ in states] == [manifest.step, manifest.step]
        assert [state for _, state in states] == [CHAIN.final_state(rank) for rank in range(2)]


def find_ranks(machine: Machine) -> list[int]:
    return [pid for pid, command in machine.find_processes().items() if command == "python main.py"]


@pytest.fixture
def job(cluster: RayCluster, tmp_path: Path) -> RunningJob:
    return RunningJob(cluster, tmp_path)


# In this order, because a machine that was given up has to be started again for the next test.


@pytest.mark.long
def test_a_cut_of_a_few_seconds_changes_nothing(job: RunningJob) -> None:
    blinking = job.machine_of(1)
    job.cluster.network.cut(blinking)
    # The length of the cut is what is tried here.
    time.sleep(SHORT_CUT_S)
    job.cluster.network.connect(blinking)
    wait_until(job.has_ended, "the job ends")
    job.check_result()


@pytest.mark.long
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
    resumed = [str(step) for step in range(second.resumed_step + 1, CHAIN.num_steps + 1)]
    assert [step for host, rank, step in lines if rank == "1" and host != lost.name] == resumed
