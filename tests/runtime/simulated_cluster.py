"""What is around a monitor: the cluster that Ray tells of, and a storage that can be slow."""

from __future__ import annotations

import threading
import time

from periflow_ray.store.root import StorageRoot

HOLD_TIMEOUT_S = 60.0


class FakeCluster:
    """Machines that drain, and Ray's key-value store."""

    def __init__(self) -> None:
        self.keys: set[bytes] = set()
        self.num_looks = 0
        self._deadlines_ms: dict[str, int] = {}

    def drain(self, *machines: str, notice_s: float = 3600.0) -> None:
        self._deadlines_ms = {**self._deadlines_ms, **dict.fromkeys(machines, int((time.time() + notice_s) * 1000))}

    def read_draining(self) -> dict[str, int]:
        self.num_looks += 1
        return self._deadlines_ms

    def put(self, key: bytes, value: bytes, overwrite: bool = True, *, namespace: bytes) -> bool:
        self.keys.add(key)
        return True

    def delete(self, key: bytes, *, namespace: bytes) -> int:
        self.keys.discard(key)
        return 1


class SlowRoot(StorageRoot):
    """A storage whose writes of certain keys can be held up."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.is_held = threading.Event()
        self._suffix: str | None = None
        self._free = threading.Event()
        self._free.set()

    def hold(self, suffix: str) -> None:
        """The next write of a key that ends so waits; ``is_held`` is set when it does."""
        self._suffix = suffix
        self.is_held.clear()
        self._free.clear()

    def let_go(self) -> None:
        self._suffix = None
        self._free.set()

    def write_bytes(self, key: str, content: bytes) -> None:
        if self._suffix is not None and key.endswith(self._suffix):
            self._suffix = None
            self.is_held.set()
            self._free.wait(HOLD_TIMEOUT_S)
        super().write_bytes(key, content)
