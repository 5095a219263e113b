"""The means that the pieces of one transfer share, and the threads that work on them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from periflow_ray.store.backends.backend import OpenStorage
from periflow_ray.store.local_files import COPY_BYTES
from periflow_ray.store.operations import Operations
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer.limits import BandwidthLimit, ByteBudget

# So that Ctrl-C is noticed while the workers work.
_JOIN_POLL_S = 0.2

Work = Callable[[], None]


@dataclass(frozen=True)
class TransferContext:
    """The root, how operations on it are run, and the limits; ``on_bytes`` is told of bytes that have arrived."""

    root: StorageRoot
    operations: Operations
    part_bytes: int
    memory: ByteBudget
    bandwidth: BandwidthLimit
    on_bytes: Callable[[int], None]

    @property
    def storage(self) -> OpenStorage:
        """The root's file system, with operations that stop when the transfer does."""
        return OpenStorage(self.root.filesystem, self.operations)

    @property
    def chunk_bytes(self) -> int:
        """How much a local copy moves before it looks at the limits again."""
        return self.part_bytes if self.bandwidth.is_limited else COPY_BYTES

    def admit_chunk(self, num_bytes: int) -> None:
        """Wait until a piece of a local copy may be made; raises when the transfer shall stop."""
        self.bandwidth.wait_for(num_bytes)
        self.operations.check_stopped()


def run_work(works: Sequence[Work], *, num_workers: int, stop: threading.Event) -> None:
    """Run pieces of work in threads, in their order; the first failure stops all and is raised.

    Args:
        stop: set when a piece fails or this thread is interrupted.
    """
    failures: list[BaseException] = []
    lock = threading.Lock()

    waiting = iter(works)

    def take() -> Work | None:
        with lock:
            return None if stop.is_set() else next(waiting, None)

    def work() -> None:
        try:
            while (piece := take()) is not None:
                piece()
        # Whatever it is, it is raised in the thread that waits for the workers.
        except BaseException as err:
            with lock:
                failures.append(err)
            stop.set()

    threads = [
        threading.Thread(target=work, name=f"transfer-{number}", daemon=True)
        for number in range(min(num_workers, len(works)))
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(_JOIN_POLL_S)
    except BaseException:
        stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        raise
    if failures:
        raise failures[0]
