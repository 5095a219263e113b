"""One node that saves checkpoints the way the runtime does, without a cluster; and what a checkpoint must be then.

The contents of a checkpoint follow from its step alone, so that whoever finds one knows what has to be in it.
"""

from __future__ import annotations

import itertools
import random
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from periflow_ray.errors import StorageError
from periflow_ray.runtime.member.uploads import CheckpointUploads
from periflow_ray.runtime.monitor.actor import Monitor
from periflow_ray.runtime.monitor.attempt import Attempt
from periflow_ray.runtime.monitor.checkpoints import Checkpoints
from periflow_ray.runtime.monitor.context import JobContext
from periflow_ray.runtime.monitor.contract import MemberFacts, Report
from periflow_ray.runtime.monitor.in_process import InProcessMonitor
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.store import checkpoints
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import DownloadItem, Transfer


class LoneMonitor(Monitor):
    """A monitor as far as it keeps checkpoints, whose only member has joined and saves at every step.

    It asks the storage for nothing else, so that each fault hits a checkpoint.
    """

    def __init__(self, root: StorageRoot, job_id: int) -> None:
        rules = JobRules(devices_per_member=1, max_failures=0, retention=Retention())
        self._context = JobContext(root, job_id, rules, lambda kind, text, attempt: None)
        self._checkpoints = Checkpoints(self._context, dict)

    async def begin_attempt(self) -> None:
        """As when the member joins."""
        attempt = Attempt(1, ("group-1", 0), 1)
        attempt.add(MemberFacts(0, 1, node_rank=0, address="127.0.0.1", port=0, ray_node_id="ray-node-0"))
        self._context.begin(attempt)
        attempt.resume_at(await self._checkpoints.begin_attempt(self._context.patience(lambda: True)))

    async def close(self) -> None:
        await self._checkpoints.close()
        self._context.close()

    def _take_report(self, report: Report) -> None:
        """There are neither steps nor metrics."""


@dataclass(frozen=True)
class Saver:
    """Saves checkpoints of a job.

    Args:
        model_bytes: size of the file that differs in every checkpoint.
        part_bytes, num_workers: as ``Transfer`` takes them.
        scratch_dir: where snapshots lie; None for the usual directory of temporary files.
    """

    root: StorageRoot
    job_id: int
    model_bytes: int
    part_bytes: int
    num_workers: int = 1
    scratch_dir: Path | None = None

    def make_contents(self, step: int) -> dict[str, bytes]:
        """What the checkpoint of a step consists of: one file in parts, a small one, an empty one, a constant one."""
        return {
            "model.pt": random.Random(step).randbytes(self.model_bytes),
            "shards/step.txt": str(step).encode(),
            "shards/empty": b"",
            "tokenizer.json": b"the same in all checkpoints",
        }

    def save(self, step: int) -> str | None:
        """Save the checkpoint of a step in an attempt of its own; None when it is committed, else why it is not."""
        directory = Path(tempfile.mkdtemp(prefix="periflow-snapshot-", dir=self.scratch_dir))
        try:
            for path, content in self.make_contents(step).items():
                (directory / "output" / path).parent.mkdir(parents=True, exist_ok=True)
                (directory / "output" / path).write_bytes(content)
            return self._save(step, directory)
        finally:
            shutil.rmtree(directory)

    def _save(self, step: int, directory: Path) -> str | None:
        monitor = LoneMonitor(self.root, self.job_id)
        transfer = Transfer(self.root, num_workers=self.num_workers, part_bytes=self.part_bytes)
        with InProcessMonitor(lambda: monitor) as client:
            try:
                client.run(lambda _: monitor.begin_attempt())
            except (OSError, StorageError) as err:
                return str(err)
            with CheckpointUploads(self.root, self.job_id, 0, client, 1, directory / "snapshots", transfer) as uploads:
                uploads.save(directory / "output", (step, 1), Report(1, 0, 1, {}))
                return uploads.finish()

    def list_visible_steps(self, root: StorageRoot) -> list[int]:
        """Steps of the checkpoints that can be seen; ``root`` is the saver's, perhaps reached in another way."""
        return [manifest.step for manifest in checkpoints.list_committed(root, self.job_id)]

    def comes_back(self, root: StorageRoot, step: int) -> bool:
        """Whether every byte of a checkpoint is restored as it was saved."""
        manifest = checkpoints.read_manifest(root, self.job_id, f"step-{step:08d}")
        directory = Path(tempfile.mkdtemp(prefix="periflow-restored-", dir=self.scratch_dir))
        try:
            target = directory / "target"
            checkpoints.restore(root, manifest, 0, target)
            files = [path for path in target.rglob("*") if path.is_file()]
            restored = {path.relative_to(target).as_posix(): path.read_bytes() for path in files}
            return restored == self.make_contents(step)
        finally:
            shutil.rmtree(directory)


def save_until_killed(tell_begin: Callable[[], None], saver: Saver) -> None:
    """Save checkpoints of the steps 1, 2, 3, ..."""
    saver.root.list_names("")  # Makes the client, which takes as long as saving does.
    tell_begin()
    for step in itertools.count(1):
        reason = saver.save(step)
        assert reason is None, reason


def download_until_killed(
    tell_begin: Callable[[], None], root: StorageRoot, item: DownloadItem, part_bytes: int, num_bytes: int
) -> None:
    """Download until so many bytes are there, and wait to be killed then."""
    num_left = num_bytes

    def count_down(num_arrived: int) -> None:
        nonlocal num_left
        num_left -= num_arrived
        if num_left <= 0:
            tell_begin()
            threading.Event().wait()

    Transfer(root, num_workers=1, part_bytes=part_bytes, on_bytes=count_down).download_files([item])
