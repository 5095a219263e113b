"""What a job's many kept checkpoints cost when its ranks join again, on a storage root that takes 30 ms a request.

A new driver knows nothing: it needs the names, gives up what its predecessor left half done, and takes the newest
checkpoint. A further attempt of the same driver knows what is committed. The column "baseline" is the same job with
five checkpoints.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from bench_figures.programs import note
from bench_figures.row import FigureError, Goal, Row
from periflow_ray.runtime.monitor.actor import Monitor
from periflow_ray.runtime.monitor.client import MonitorClient
from periflow_ray.runtime.monitor.contract import MemberFacts
from periflow_ray.runtime.monitor.in_process import InProcessMonitor
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.store.checkpoints import Manifest, StoredFile, checkpoint_key
from periflow_ray.store.checkpoints.manifest import MANIFEST, manifest_bytes
from periflow_ray.store.root import StorageRoot

REQUEST_S = 0.03
NUM_CHECKPOINTS = 400
NUM_FEW = 5
# As eight nodes of 64 files each: every manifest has some 80 kB.
NUM_FILES = 512
JOB_ID = 1
GOAL = Goal("<=", 1.0, "s")

Result = TypeVar("Result")


class DistantRoot(StorageRoot):
    """A root in memory whose every request takes ``REQUEST_S``; ``requests`` counts them by kind."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.requests: Counter[str] = Counter()

    def read_bytes(self, key: str, start: int | None = None) -> bytes:
        return self._ask("read", lambda: super(DistantRoot, self).read_bytes(key, start))

    def write_bytes(self, key: str, content: bytes) -> None:
        self._ask("write", lambda: super(DistantRoot, self).write_bytes(key, content))

    def exists(self, key: str) -> bool:
        return self._ask("look", lambda: super(DistantRoot, self).exists(key))

    def list_names(self, prefix: str) -> list[str]:
        return self._ask("list", lambda: super(DistantRoot, self).list_names(prefix))

    def list_files(self, prefix: str) -> dict[str, int]:
        return self._ask("list", lambda: super(DistantRoot, self).list_files(prefix))

    def delete(self, prefix: str) -> None:
        self._ask("delete", lambda: super(DistantRoot, self).delete(prefix))

    def _ask(self, kind: str, operation: Callable[[], Result]) -> Result:
        self.requests[kind] += 1
        time.sleep(REQUEST_S)
        return operation()


def measure_restart_cost() -> list[Row]:
    """Seconds from the start of the monitor to the answer to ``join``, and to that of the next attempt's ``join``."""
    few_s = _restart(NUM_FEW)
    many_s = _restart(NUM_CHECKPOINTS)
    return [
        Row(name, ours, baseline, "s", ours / baseline, GOAL)
        for name, ours, baseline in zip(("restart_cost", "restart_cost_again"), many_s, few_s, strict=True)
    ]


def _restart(num_checkpoints: int) -> tuple[float, float]:
    root = DistantRoot(f"memory://periflow-bench-restart-{num_checkpoints}")
    newest = _fill(root.uri, num_checkpoints)
    rules = JobRules(devices_per_member=1, max_failures=0, retention=Retention(keep_last=num_checkpoints))
    began_s = time.monotonic()
    with InProcessMonitor(lambda: Monitor(root, JOB_ID, rules)) as monitor:
        first_s = _join(monitor, root, "group-1", newest, began_s)
        again_s = _join(monitor, root, "group-2", newest, time.monotonic())
    return first_s, again_s


def _join(monitor: MonitorClient, root: DistantRoot, group: str, newest: str, began_s: float) -> float:
    start = monitor.join((group, 0), MemberFacts(0, 1, 0, "127.0.0.1", 1, "machine"))
    seconds = time.monotonic() - began_s
    found = start.checkpoint and start.checkpoint.checkpoint
    if found != newest:
        raise FigureError(f"the newest checkpoint is {newest}, but {found} was found")
    requests = ", ".join(f"{number} x {kind}" for kind, number in sorted(root.requests.items()))
    note(f"restart_cost: attempt {start.attempt}, newest {newest}: {seconds:.2f} s, {requests}")
    root.requests.clear()
    return seconds


def _fill(uri: str, num_checkpoints: int) -> str:
    """Write the manifests, and one file of each checkpoint; returns the newest one's name."""
    root = StorageRoot(uri)
    files = tuple(
        StoredFile(f"shard-{index:04}.pt", 1 << 20, f"xxh3_128:{index:032x}", index // 64, f"files/shard-{index:04}.pt")
        for index in range(NUM_FILES)
    )
    manifest = Manifest("", JOB_ID, 0, 1, NUM_FILES, NUM_FILES // 64, 0.0, files, {"loss": 0.5})
    name = ""
    for step in range(1, num_checkpoints + 1):
        name = f"step-{step:08d}"
        root.write_bytes(checkpoint_key(JOB_ID, name, files[0].key), b"x")
        content = manifest_bytes(dataclasses.replace(manifest, checkpoint=name, step=step))
        root.write_bytes(checkpoint_key(JOB_ID, name, MANIFEST), content)
    return name
