"""Azure Blob Storage: uploads as lists of blocks, and copies on the server."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from periflow_ray.store.filesystem import time_limit
from periflow_ray.store.operations import Operations

# Limit of the Blob API: 50,000 blocks in a blob.
_MAX_BLOCKS = 50_000
_COPY_POLL_S = 0.2
# What adlfs writes and reads to tell files from the placeholders of directories.
_FILE_METADATA = {"is_directory": "false"}


class AzurePartWriter:
    """Blocks and their list; see ``PartWriter``. The server forgets blocks that no list names within a week."""

    def __init__(
        self, operations: Operations, fs: Any, key: str, path: str, *, num_bytes: int, part_bytes: int
    ) -> None:
        self.part_bytes = max(part_bytes, -(-num_bytes // _MAX_BLOCKS))
        self._operations = operations
        self._fs = fs
        self._key = key
        self._path = path
        # Blocks of another upload to the same key must not be taken for this one's.
        self._upload_id = uuid.uuid4().hex
        self._num_parts = 0

    def begin(self) -> None:
        """Nothing: blocks may come at once."""

    def put_part(self, index: int, content: bytes) -> None:
        self._num_parts = max(self._num_parts, index + 1)
        self._request(lambda blob: blob.stage_block(self._block_id(index), content, len(content)), len(content))

    def complete(self) -> None:
        block_ids = [self._block_id(index) for index in range(self._num_parts)]
        self._request(lambda blob: blob.commit_block_list(block_ids, metadata=_FILE_METADATA))

    def abort(self) -> None:
        """Nothing: there is no request to forget blocks."""

    def _block_id(self, index: int) -> str:
        return base64.b64encode(f"{self._upload_id}-{index:05d}".encode()).decode()

    def _request(self, operation: Callable[[Any], Awaitable[Any]], num_bytes: int = 0) -> None:
        async def request() -> None:
            async with _blob_client(self._fs, self._path) as blob:
                await operation(blob)

        self._operations.run(
            self._key, lambda: self._operations.wait_for(self._fs, request, timeout_s=time_limit(num_bytes))
        )


async def copy_blob(fs: Any, source: str, target: str) -> None:
    """Copy a blob inside the server, and wait until it is there.

    Raises:
        FileNotFoundError: there is no source.
    """
    await fs._cp_file(source, target)
    async with _blob_client(fs, target) as blob:
        while (status := (await blob.get_blob_properties()).copy.status) == "pending":
            await asyncio.sleep(_COPY_POLL_S)
    if status not in (None, "success"):
        raise OSError(f"the server gave the copy up ({status})")


def _blob_client(fs: Any, path: str) -> Any:
    container, name, _ = fs.split_path(path)
    return fs.service_client.get_blob_client(container, name)
