"""A job of two ranks on two stand-in nodes whose last states tell whether every step was made exactly once.

Every step's state follows from the one before: a step that is lost, or made twice, changes the last one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from periflow_ray import jobs
from periflow_ray.jobs.attempts import AttemptRecord, read_attempts
from periflow_ray.runtime.member.sandbox import Sandbox
from periflow_ray.store import checkpoints
from support.hash_chain import NUM_RANKS, HashChain
from support.workbench import Workbench, processes_with, wait_until

WriteJob = Callable[..., tuple[Path, Path]]


class HashChainJob:
    """The job on the workbench; it does not end before its steps are made, or soon after it is told to ``hurry``.

    Args:
        chain: each of its steps takes time after every start.
        extra: further keys of the template.
    """

    def __init__(
        self, workbench: Workbench, write_job: WriteJob, chain: HashChain, extra: str = "max_failures: 3"
    ) -> None:
        self.workbench = workbench
        signs_dir = workbench.cluster_dir.parent / f"signs-{uuid4().hex}"
        signs_dir.mkdir()
        self._hurry_path, self.slow_save_path = signs_dir / "hurry", signs_dir / "slow-save"
        """A save that the job asked for takes as long as the second file is there."""
        self._chain = replace(
            chain,
            num_slow_starts=sys.maxsize,
            hurry_path=str(self._hurry_path),
            slow_save_path=str(self.slow_save_path),
        )
        template, workspace = write_job(self._chain.script(), extra=f"{extra}\n")
        text = template.read_text().replace("num_devices: 1", f"num_devices: {NUM_RANKS}")
        template.write_text(text.replace("type: custom", "type: custom\n  launch_mode: device"))
        self.job_id = workbench.start(template, workspace)

    def wait_for_checkpoint(self, step: int = 1) -> None:
        """Wait until one of this step or a later one is committed."""
        wait_until(lambda: self.checkpoint_step() >= step, f"a checkpoint of step {step}")

    def checkpoint_step(self) -> int:
        """The step of the newest committed checkpoint; 0 without one."""
        newest = checkpoints.latest_committed(self.workbench.root, self.job_id)
        return 0 if newest is None else newest.step

    def attempts(self) -> list[AttemptRecord]:
        """All attempts so far."""
        return read_attempts(self.workbench.root, self.job_id)

    def hurry(self) -> None:
        """Have it make the rest of its steps at once, without further checkpoints until the last one."""
        self._hurry_path.touch()

    def finish(self, status: str = "success") -> list[AttemptRecord]:
        """Wait for the job's end; returns its attempts."""
        wait_until(lambda: jobs.read_state(self.workbench.root, self.job_id).has_ended, "the job ends")
        state = jobs.read_state(self.workbench.root, self.job_id)
        assert state.status == status, state
        return self.attempts()

    def resume(self) -> None:
        """``job resume``; returns when the job goes on."""
        resumed = self.workbench.run("job", "resume", self.job_id, "--local", "--no-follow")
        assert resumed.exit_code == 0, resumed
        wait_until(lambda: not jobs.read_state(self.workbench.root, self.job_id).has_ended, "the job goes on", 30)

    def read_states(self, directory: Path) -> list[str]:
        """The ranks' last states, from the last checkpoint, which goes into a new directory."""
        manifest = checkpoints.latest_committed(self.workbench.root, self.job_id)
        assert manifest is not None
        saved = self._chain.read_states(self.workbench.root, manifest, directory)
        assert {manifest.step, *(step for step, _ in saved)} == {self._chain.num_steps}, manifest.checkpoint
        return [state for _, state in saved]

    @property
    def expected_states(self) -> list[str]:
        """What ``read_states`` gives when every step was made once."""
        return [self._chain.final_state(rank) for rank in range(NUM_RANKS)]

    def written_step(self, rank: int) -> int:
        """The step of the state that a rank wrote last, whether or not it is in a checkpoint; 0 without one."""
        sandbox = Sandbox(self.workbench.root.uri, self.job_id, rank)
        try:
            return int(json.loads(sandbox.path_of(f"/workspace/ckpt/state-{rank}.json").read_text())[0])
        except (OSError, ValueError):  # It is just being written.
            return 0

    def sandbox(self, node_rank: int) -> str:
        """The directory of a node."""
        return str(Sandbox(self.workbench.root.uri, self.job_id, node_rank).directory)

    def find_rank(self, rank: int) -> int | None:
        """The process that runs the script of a rank; None while there is none."""
        for pid in processes_with(self.sandbox(rank)):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_text()
            except OSError:
                continue
            if command == "python\0main.py\0":
                return pid
        return None
