"""The storage servers of the tests, which are the bench's too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from support.fault_proxy import FaultProxy
from support.storage_servers import StorageServer, serve_rclone

__all__ = ["FaultProxy", "StorageServer", "arrow_environment", "serve_s3"]


@contextlib.contextmanager
def serve_s3(directory: Path) -> Iterator[StorageServer]:
    """S3 on loopback by rclone, which is fast enough for its clients to be what is measured; it keeps keys as files."""
    with serve_rclone(directory / "s3") as server:
        yield server


def arrow_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for Arrow's S3 client, which rclone otherwise refuses for want of a Content-Length."""
    return {**environment, "AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED"}
