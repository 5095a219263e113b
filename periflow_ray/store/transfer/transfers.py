"""Moving many files between this machine and a storage root: parallel, retried, bounded in memory and bandwidth."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer.downloading import DownloadItem, Downloads
from periflow_ray.store.transfer.limits import BandwidthLimit, ByteBudget
from periflow_ray.store.transfer.uploading import UploadItem, Uploads
from periflow_ray.store.transfer.work import TransferContext, Work, run_work

PART_BYTES = 8 << 20
_NUM_TRIES = 5


class Transfer:
    """Moves files to and from a storage root.

    Args:
        num_workers: operations at a time.
        part_bytes: size of the pieces that large files move in; ``num_workers * part_bytes`` bounds the memory.
        bandwidth_bytes_per_s: limit over all workers together; None for no limit. Links and clones count nothing.
        on_bytes: called with the number of bytes whenever some have arrived (or were there already), from any thread.
    """

    def __init__(
        self,
        root: StorageRoot,
        *,
        num_workers: int = 8,
        part_bytes: int = PART_BYTES,
        bandwidth_bytes_per_s: int | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        self._num_workers = num_workers
        self._stop = threading.Event()
        self._is_cancelled = False
        self._context = TransferContext(
            root=root,
            operations=dataclasses.replace(root.operations, num_tries=_NUM_TRIES, stop=self._stop),
            part_bytes=part_bytes,
            memory=ByteBudget(num_workers * part_bytes),
            bandwidth=BandwidthLimit(bandwidth_bytes_per_s, self._stop),
            on_bytes=on_bytes or (lambda num_bytes: None),
        )

    def upload_files(self, items: Sequence[UploadItem]) -> None:
        """Copy files of this machine to their keys; each key appears whole or not at all, and stays.

        Raises:
            StorageError: the storage root failed, with key, URI and reason; or the transfer was cancelled.
            OSError: a source cannot be read, or a local root failed.
        """
        uploads = Uploads(self._context, items)
        try:
            self._run(uploads.works())
            self._context.root.sync([item.key for item in items])
        finally:
            uploads.abort()

    def download_files(self, items: Sequence[DownloadItem]) -> None:
        """Copy keys to files of this machine; each target appears whole and verified or not at all.

        Targets that are there already are left as they are, and what an interrupted download has fetched is used, both
        only where a checksum is known.

        Raises:
            NotFoundError: a key does not exist.
            StorageError: the storage root failed, a key has another size or checksum, or the transfer was cancelled.
            OSError: a target cannot be written, or a local root failed.
        """
        downloads = Downloads(self._context, items)
        try:
            for works in (downloads.preparations(), downloads.works()):
                self._run(works)
        finally:
            downloads.close()

    def cancel(self) -> None:
        """Stop what runs, from any thread; the call that runs raises StorageError, and so do later ones."""
        self._is_cancelled = True
        self._stop.set()

    def _run(self, works: Iterator[Work]) -> None:
        # A failure has set it; the same transfer may be run again.
        self._stop.clear()
        if self._is_cancelled:
            self._stop.set()
        run_work(list(works), num_workers=self._num_workers, stop=self._stop)
        self._context.operations.check_stopped()


def upload_file(root: StorageRoot, source: Path, key: str) -> None:
    """Copy one file of this machine to a key; see ``Transfer``."""
    Transfer(root).upload_files([UploadItem(source, key)])


def download_file(root: StorageRoot, key: str, target: Path) -> None:
    """Copy one key to a file of this machine; see ``Transfer``.

    Raises:
        NotFoundError: there is no such key.
    """
    Transfer(root).download_files([DownloadItem(key, target, root.size_bytes(key))])
