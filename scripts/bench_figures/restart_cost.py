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
from periflow_ray.store.checkpoints import Manifest, StoredFile, checkpoint_key, latest_committed, sweep
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
    """Seconds that a new driver and a further attempt need of the storage root before their ranks may begin."""
    few_s = _restart(NUM_FEW)
    many_s = _restart(NUM_CHECKPOINTS)
    return [
        Row(name, ours, baseline, "s", ours / baseline, GOAL)
        for name, ours, baseline in zip(("restart_cost", "restart_cost_again"), many_s, few_s, strict=True)
    ]


def _restart(num_checkpoints: int) -> tuple[float, float]:
    root = DistantRoot(f"memory://periflow-bench-restart-{num_checkpoints}")
    newest = _fill(root.uri, num_checkpoints)
    first_s, committed = _join(root, newest, known=())
    again_s, _ = _join(root, newest, known=committed)
    return first_s, again_s


def _join(root: DistantRoot, newest: str, known: tuple[str, ...]) -> tuple[float, tuple[str, ...]]:
    """What the monitor asks the storage root when an attempt begins; seconds, and the names of what is committed."""
    root.requests.clear()
    began_s = time.monotonic()
    swept = sweep(root, JOB_ID, "the attempt before ended", known=set(known))
    latest = latest_committed(root, JOB_ID)
    seconds = time.monotonic() - began_s
    if latest is None or latest.checkpoint != newest or swept.committed[-1] != newest:
        raise FigureError(f"the newest checkpoint is {newest}, but {latest and latest.checkpoint} was found")
    requests = ", ".join(f"{number} x {kind}" for kind, number in sorted(root.requests.items()))
    note(f"restart_cost: {len(swept.committed)} checkpoints, {len(known)} of them known: {seconds:.2f} s, {requests}")
    return seconds, tuple(swept.committed)


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
