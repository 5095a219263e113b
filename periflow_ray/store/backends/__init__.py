"""The kinds of storage, one file each, and the table of them: an unknown scheme is an error.

A new kind is one file here and one row in ``_ROWS``. The file holds a class with the facts and methods of ``Backend``;
where fsspec has a file system for it, a subclass of ``FsspecBackend`` needs little more than ``schemes`` and
``options``. Commands, settings and transfers ask the table and have no lists of their own. A cloud with keys of its own
kind has them as a type in ``credentials/credential_types.py``, which knows nothing of storage; packages that it needs
are an extra in ``pyproject.toml``. ``tests/storage/conftest.py`` runs the contract of storage roots on every kind.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from periflow_ray.errors import StorageError
from periflow_ray.store.backends.azure import AzureBackend
from periflow_ray.store.backends.backend import Backend, Opening, scheme_of
from periflow_ray.store.backends.gcs import GcsBackend
from periflow_ray.store.backends.local import LocalBackend
from periflow_ray.store.backends.memory import MemoryBackend
from periflow_ray.store.backends.s3 import S3Backend
from periflow_ray.store.time_limits import read_timeout

_ROWS: tuple[Backend, ...] = (
    S3Backend(),
    AzureBackend(),
    GcsBackend(),
    LocalBackend(),
    MemoryBackend(),
)

BACKENDS: dict[str, Backend] = {scheme: backend for backend in _ROWS for scheme in backend.schemes}
"""Scheme -> kind of storage."""


def find_backend(uri: str) -> Backend:
    """The kind of storage that a URI is on.

    Raises:
        StorageError: the URI is empty, or its scheme is unknown.
    """
    if not uri:
        raise StorageError("the storage root's URI is empty; give a directory, s3://bucket/prefix, abfs://...")
    scheme = scheme_of(uri)
    if scheme not in BACKENDS:
        raise StorageError(
            f"storage root '{uri}' cannot be opened: scheme '{scheme}' is unknown. Schemes: {', '.join(BACKENDS)}"
        )
    return BACKENDS[scheme]


def open_filesystem(
    uri: str,
    credential_values: Mapping[str, str] | None = None,
    *,
    variables: Mapping[str, str] | None = None,
    read_timeout_s: float | None = None,
) -> tuple[Any, str]:
    """The file system of a URI and the URI's path in it; nothing is asked of a server yet.

    Args:
        credential_values: as ``read_credential`` gives them; None leaves it to the cloud's usual chain.
        variables: cloud variables that come before the environment's.
        read_timeout_s: how long a server may take to answer; by default ``PERIFLOW_STORAGE_TIMEOUT_S``, else 30.
    Raises:
        StorageError: the scheme is unknown, needs an extra that is not installed, or the credential does not fit.
    """
    backend = find_backend(uri)
    known = {**os.environ, **(variables or {})}
    return backend.open(Opening(uri, credential_values, known, read_timeout_s or read_timeout()))


def cloud_variables(backend: Backend) -> dict[str, str]:
    """This process's environment variables that decide how a kind of storage is reached."""
    prefixes = backend.credential_type.variable_prefixes if backend.credential_type else ()
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}


def clouds() -> dict[str, Backend]:
    """Names of clouds as commands take them -> kind of storage."""
    return {cloud: backend for backend in BACKENDS.values() for cloud in backend.clouds}
