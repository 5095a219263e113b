"""The memory of this process, for tests and trials; nothing in it outlives the process."""

from __future__ import annotations

from periflow_ray.store.backends.fsspec_backend import FsspecBackend


class MemoryBackend(FsspecBackend):
    """fsspec's memory file system; see ``Backend``."""

    schemes = ("memory",)
