"""Sweeps on a cluster of machines that lose their driver, agents, machines and head at random moments."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support.hash_chain import VM
from support.machines import Cluster, run_cluster
from support.storage_servers import StorageServer
from support.swept_chain import assert_sound, write_sweep_files
from support.workbench import find_agent, find_driver, processes_with, wait_until

from periflow_ray import jobs
from periflow_ray.spec import SweepSpec
from periflow_ray.sweeps.journal import Trial, read_trials
from periflow_ray.sweeps.space import draw_trials

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(1500)]

NUM_MACHINES = 2
STORAGES = ["folder", "s3", "abfs"]


# Of the module's scope, so that a server starts before a test's children are looked at.
@pytest.fixture(scope="module", params=[None, "moto_server", "azurite_server"], ids=STORAGES)
def server(request: pytest.FixtureRequest) -> StorageServer | None:
    """The one with the storage root; None for a folder."""
    return None if request.param is None else request.getfixturevalue(request.param)


@pytest.fixture
def swept(server: StorageServer | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of its own, because its machines reach the storage as they were started."""
    storage: Any = tmp_path / "storage"
    if server is not None:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        storage = server.make_uri(f"sweeps/{uuid4().hex}")
    with run_cluster(storage) as cluster:
        cluster.start_machines(NUM_MACHINES)
        yield cluster


class Losses:
    """Takes from a sweep what a schedule says, at random moments.

    Args:
        kinds: what is lost, one after the other; never more than the seed decides.
    """

    def __init__(self, cluster: Cluster, kinds: list[str], seed: int) -> None:
        self._cluster = cluster
        self._chance = random.Random(seed)
        self._chance.shuffle(kinds)
        self.kinds = kinds

    def run(self, sweep_id: int) -> None:
        """Kill until the schedule or the sweep is over, and see to it that the sweep comes to its end."""
        root = self._cluster.root
        while True:
            wait_until(lambda: self._has_ended(sweep_id) or bool(self._running(sweep_id)), "a trial runs or all ended")
            if self._has_ended(sweep_id):
                state = jobs.read_state(root, sweep_id)
                if state.status == "success":
                    return
                # Its keeper gives up a driver that is killed too often.
                self._resume(sweep_id)
                continue
            if not self.kinds:
                wait_until(lambda: self._has_ended(sweep_id), "the sweep ends", 300)
                continue
            time.sleep(self._chance.uniform(0.0, 3.0))
            if not self._has_ended(sweep_id) and self._kill(self.kinds[0], sweep_id):
                print(f"{time.strftime('%H:%M:%S')} sweep {sweep_id} lost its {self.kinds.pop(0)}", flush=True)

    def _kill(self, kind: str, sweep_id: int) -> bool:
        cluster = self._cluster
        if kind == "driver":
            return kill(find_driver(cluster.root.uri, sweep_id))
        if kind == "head":
            cluster.head.power_off()
            cluster.start_head()
            # The old machines may go on for a while with what they run.
            for _ in range(NUM_MACHINES):
                cluster.start_machines(1)
            self._resume(sweep_id)
            cluster.provide_machines(NUM_MACHINES)
            return True
        running = self._running(sweep_id)
        if not running:
            return False
        job_id = self._chance.choice(running).job_ids[-1]
        with contextlib.suppress(ValueError):
            machine = cluster.machine_of(job_id, 0)
            if kind == "agent":
                (sandbox,) = machine.temp_dir.glob(f"periflow-*/*-{job_id}/node-0")
                return kill(find_agent(str(sandbox)))
            machine.power_off()
            cluster.provide_machines(NUM_MACHINES)
            return True
        return False

    def _running(self, sweep_id: int) -> list[Trial]:
        trials = read_trials(self._cluster.root, sweep_id).values()
        return [trial for trial in trials if trial.status == "running" and trial.step > 0]

    def _has_ended(self, sweep_id: int) -> bool:
        # A driver that was given up is known by its silence.
        return jobs.read_state(self._cluster.root, sweep_id).has_ended

    def _resume(self, sweep_id: int) -> None:
        def is_taken_up() -> bool:
            outcome = self._cluster.run("sweep", "resume", sweep_id, "--address", self._cluster.address, "--no-follow")
            # A driver that was lost before its first heartbeat may still be on its way, for all that anybody knows.
            assert outcome.exit_code == 0 or "is waiting" in outcome.stderr, outcome
            return outcome.exit_code == 0

        wait_until(is_taken_up, "the sweep is taken up", 120)


def kill(pid: int | None) -> bool:
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def start(cluster: Cluster, directory: Path, num_steps: int, step_time_s: float, sweep: object) -> int:
    files = write_sweep_files(directory, num_steps, step_time_s, VM, sweep)
    outcome = cluster.run("sweep", "run", "--address", cluster.address, *files, "--no-follow", "--yes")
    number = re.match(r"Sweep \((\d+)\)", outcome.stdout)
    assert number is not None, outcome
    return int(number[1])


def assert_nothing_left(cluster: Cluster) -> None:
    """No process of a trial, no driver, and no placement group."""

    def commands() -> list[bytes]:
        found = []
        for pid in processes_with(tempfile.gettempdir()):
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        # Not Ray's own, in whose arguments there are main.pys, too.
        return [each for each in found if b"main.py" in each.split(b"\0") or cluster.root.uri.encode() in each]

    wait_until(lambda: commands() == [], f"no process is left: {commands()}", 60)
    wait_until(lambda: cluster.live_placement_groups() == [], "no placement group is left", 60)


@pytest.mark.parametrize("seed", [20])
def test_twenty_losses_leave_the_same_finished_trials_each_run_once(swept: Cluster, tmp_path: Path, seed: int) -> None:
    losses = Losses(swept, ["driver"] * 7 + ["agent"] * 6 + ["node"] * 4 + ["head"] * 3, seed)
    num_steps, num_trials = 60, 6
    schedulers: Iterator[dict[str, Any]] = itertools.cycle(
        [{"type": "none"}, {"type": "asha", "max_t": num_steps, "grace_period": 20, "reduction_factor": 3}]
    )
    while losses.kinds:
        scheduler = next(schedulers)
        sweep = {
            "metric": "loss",
            "mode": "min",
            "num_trials": num_trials,
            "parameters": {"x": {"uniform": [1, 10]}},
            "scheduler": scheduler,
            "seed": len(losses.kinds),
        }
        sweep_id = start(swept, tmp_path / uuid4().hex, num_steps, 0.1, sweep)
        losses.run(sweep_id)
        trials = assert_sound(swept.root, sweep_id, num_steps, tmp_path / "states")
        drawn = list(itertools.islice(draw_trials(SweepSpec.model_validate(sweep)), num_trials))
        assert [trials[number].parameters for number in range(1, num_trials + 1)] == drawn
        assert len(trials) == num_trials
        best = min(trials.values(), key=lambda trial: trial.parameters["x"])
        assert best.status == "success"
        for trial in trials.values():
            assert trial.status == "success" or (scheduler["type"] == "asha" and trial.step >= 20)
    assert_nothing_left(swept)


@pytest.mark.parametrize("seed", [5])
def test_a_population_that_loses_five_times_has_the_lineage_that_its_journal_says(
    swept: Cluster, tmp_path: Path, seed: int
) -> None:
    losses = Losses(swept, ["driver", "driver", "agent", "node", "head"], seed)
    num_steps = 200
    sweep = {
        "metric": "loss",
        "mode": "min",
        "num_trials": 4,
        "resources": {"device": 0.5},
        "parameters": {"x": {"uniform": [0.5, 10]}},
        "scheduler": {"type": "pbt", "perturbation_interval": 15, "quantile_fraction": 0.5},
    }
    num_clones = 0
    while losses.kinds:
        sweep_id = start(swept, tmp_path / uuid4().hex, num_steps, 0.1, sweep)
        losses.run(sweep_id)
        trials = assert_sound(swept.root, sweep_id, num_steps, tmp_path / "states")
        assert [trial.status for trial in trials.values()] == ["success"] * 4
        num_clones += sum(len(trial.clones) for trial in trials.values())
    assert num_clones > 0
    assert_nothing_left(swept)
