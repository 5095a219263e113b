"""The training that events disturb: an elastic hash chain on a cluster of several machines."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support.hash_chain import HashChain
from support.machines import Cluster
from support.workbench import Outcome, processes_with, wait_until

from chaos_run.schedule import Setting
from chaos_run.storages import Storage, open_storage
from periflow_ray import jobs
from periflow_ray.jobs.attempts import AttemptRecord, read_attempts
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints import Manifest
from periflow_ray.store.root import StorageRoot

STEP_TIME_S = 0.03
SAVE_EVERY = 20
KEEP_LAST = 8
START_DEVICES = 2
WEIGHTS_BYTES = 200_000
CLOCK_DIR = Path(__file__).parents[2] / "tests" / "support" / "movable_clock"
TEMPLATE = f"""\
name: chaos
vm: aws-16gb-v100-1g-us-east-2
num_devices: {START_DEVICES}
max_failures: 100000
hang_timeout: 20s
job_setting:
  type: custom
  launch_mode: device
  resources: {{cpus: 1, memory: 100MiB}}
  docker:
    command: cd /workspace/app && python main.py
checkpoint:
  output_checkpoint_dir: /workspace/ckpt
  keep_last: {KEEP_LAST}
"""
# What Ray, our programs and the user's have as their command line, in words.
Kind = Callable[[list[str]], bool]
KINDS: dict[str, Kind] = {
    "rank": lambda words: words[1:2] == ["main.py"],
    "agent": lambda words: words[0].startswith("ray::RayTrainWorker"),
    "monitor": lambda words: words[0].startswith("ray::Monitor"),
    "controller": lambda words: words[0].startswith("ray::TrainController"),
    "driver": lambda words: "periflow_ray.runtime.driver" in words,
    "driver's keeper": lambda words: "periflow_ray.runtime.driver_keeper" in words and "-c" not in words,
    "command's keeper": lambda words: any(word.endswith("keeper.py") for word in words) and "main.py" in words[-1],
}


class Training:
    """The cluster, its job, and what this run has done to them.

    Args:
        root: the storage root as nothing disturbs it.
    """

    def __init__(self, directory: Path, setting: Setting, storage: Storage, cluster: Cluster, num_steps: int) -> None:
        self.setting, self.storage, self.cluster = setting, storage, cluster
        self.root = StorageRoot(storage.uri)
        self._directory = directory
        self._hurry_path = directory / "hurry"
        self.chain = HashChain(
            num_steps=num_steps,
            step_time_s=STEP_TIME_S,
            save_every=SAVE_EVERY,
            num_slow_starts=sys.maxsize,
            is_elastic=True,
            weights_bytes=WEIGHTS_BYTES,
            hurry_path=str(self._hurry_path),
        )
        self.damaged: set[str] = set()
        """Checkpoints with a file that this run has damaged."""
        self.lost_on_purpose: set[int] = set()
        """Attempts after which a checkpoint was damaged or deleted, so that steps may be made again."""
        self.job_id = 0

    def submit(self) -> None:
        """Start the machines and the job; returns at the first checkpoint."""
        self.cluster.provide_machines(self.setting.num_machines)
        app = self._directory / "app"
        app.mkdir()
        (app / "main.py").write_text(self.chain.script())
        template = self._directory / "pf-template.yml"
        template.write_text(TEMPLATE + ("elastic: {min_devices: 1}\n" if self.setting.is_elastic else ""))
        self.job_id = self.cluster.submit(template, app)
        wait_until(lambda: bool(self.committed()), "the first checkpoint")

    def find(self, kind: str) -> list[int]:
        """Processes of the job of one of the ``KINDS``."""
        found = []
        for pid in processes_with(str(self._directory)):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
                if KINDS[kind](words):
                    found.append(pid)
        return found

    def status(self) -> str:
        """As the job itself has last said."""
        return jobs.read_written_state(self.root, self.job_id).status

    def committed(self) -> dict[str, Manifest]:
        """The committed checkpoints by name, the newest last."""
        return {manifest.checkpoint: manifest for manifest in checkpoints.list_committed(self.root, self.job_id)}

    def attempts(self) -> list[AttemptRecord]:
        """All attempts so far."""
        return read_attempts(self.root, self.job_id)

    def run(self, *arguments: object) -> Outcome:
        """A command of ``periflow-ray``."""
        return self.cluster.run(*arguments)

    def view(self) -> dict[str, Any]:
        """What ``job view`` says, which also asks the cluster whether the job is alive."""
        outcome = self.run("job", "view", self.job_id, "-o", "json")
        assert outcome.exit_code == 0, outcome
        document: dict[str, Any] = json.loads(outcome.stdout)
        return document

    def resume(self, *options: object) -> Outcome:
        """``job resume`` on this cluster."""
        return self.run("job", "resume", self.job_id, "--address", self.cluster.address, "--no-follow", *options)

    def restore_machines(self) -> None:
        """Have as many machines as at the beginning."""
        self.cluster.provide_machines(self.setting.num_machines)

    def hurry(self) -> None:
        """Have the job make the rest of its steps at once."""
        self._hurry_path.touch()

    def read_state(self) -> tuple[str, int, str]:
        """Name, step and state of the newest checkpoint."""
        manifest = list(self.committed().values())[-1]
        target = self._directory / "final"
        checkpoints.restore(self.root, manifest, 0, target)
        step, state, _ = json.loads((target / "state-0.json").read_text())
        return manifest.checkpoint, step, state


@contextlib.contextmanager
def open_training(directory: Path, setting: Setting, num_steps: int) -> Iterator[Training]:
    """A cluster with a head, and a job that is not yet submitted."""
    with open_storage(setting.storage, directory) as storage:
        cluster_dir = directory / "c"
        cluster_dir.mkdir()
        with Cluster(cluster_dir, storage.uri) as cluster:
            cluster.env.update(storage.variables)
            cluster.env["PYTHONPATH"] = os.pathsep.join((str(CLOCK_DIR), cluster.env["PYTHONPATH"]))
            cluster.start_head()
            yield Training(directory, setting, storage, cluster, num_steps)
