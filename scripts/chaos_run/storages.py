"""Where a run's storage root lies, and the faults that it can have there."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support.fault_proxy import FaultProxy
from support.storage_servers import serve_moto

SMALL_DISK = "24m"


@dataclass(frozen=True)
class Storage:
    """A storage root to be disturbed.

    Args:
        variables: with which the job and the commands reach it; this process has others, which nothing disturbs.
        disk: the small file system that it fills alone.
        proxy: through which the job's requests go.
    """

    kind: str
    uri: str
    variables: dict[str, str] = field(default_factory=dict)
    disk: Path | None = None
    proxy: FaultProxy | None = None


@contextlib.contextmanager
def open_storage(kind: str, directory: Path) -> Iterator[Storage]:
    """A storage root of this kind below a directory; a plain folder where this user may not mount a small disk."""
    if kind == "S3":
        with serve_moto(directory / "moto") as server, FaultProxy(server.port) as proxy:
            os.environ.update(server.environment)
            yield Storage(kind, server.make_uri("chaos"), server.reached_through(proxy.port), proxy=proxy)
        return
    disk = directory / "disk"
    disk.mkdir()
    if kind == "small disk" and _mount(disk):
        try:
            yield Storage(kind, str(disk / "storage"), disk=disk)
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)
    else:
        yield Storage("folder", str(disk / "storage"))


def _mount(directory: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(directory)]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0
