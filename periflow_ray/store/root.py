"""The storage root: one URI under which everything of the product is kept, resolved here and nowhere else.

Keys are relative paths with forward slashes, for example ``jobs/12/plan.json``.

Long because all that can be done with a key is a method of the root.
"""

from __future__ import annotations

import json
import os
import posixpath
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from periflow_ray.credentials import read_credential
from periflow_ray.errors import StorageError
from periflow_ray.finite_json import dump_json
from periflow_ray.private_files import make_private_directories
from periflow_ray.store import local_files
from periflow_ray.store.backends import cloud_variables, find_backend, open_filesystem
from periflow_ray.store.backends.backend import Backend, OpenStorage
from periflow_ray.store.operations import Operations
from periflow_ray.store.root_check import check_directory, check_server

_NUM_TRIES = 3
_Result = TypeVar("_Result")


class StorageRoot:
    """A place to keep files under keys.

    Roots pickle: opened elsewhere, one is reached with the same credential and cloud variables as here.
    A server's failures are ``StorageError``; those of a local root stay ``OSError``.

    Args:
        uri: ``/path``, ``file:///path``, ``s3://bucket/prefix``, ``abfs://container/prefix``, ``gs://...``.
        credential: name of a stored credential; None leaves it to the cloud's usual chain.
        fsync: whether what ``sync`` is called for outlives a loss of power of this machine.
    Raises:
        StorageError: the scheme is unknown or needs an extra that is not installed, or the credential does not fit.
        NotFoundError: there is no credential of that name.
    """

    def __init__(self, uri: str, credential: str | None = None, *, fsync: bool = True) -> None:
        backend = find_backend(uri)
        self._open(uri, _read_credential_values(uri, backend, credential), cloud_variables(backend), fsync)

    def _open(self, uri: str, values: Mapping[str, str] | None, variables: Mapping[str, str], fsync: bool) -> None:
        self._given_uri = uri
        self._fsync = fsync
        self._credential_values = values
        self._variables = variables
        self._lock = threading.Lock()
        self._backend = find_backend(uri)
        fs, base = self._open_filesystem()
        self._fs, self._fs_pid = fs, os.getpid()
        is_local = self._backend.is_local
        self._base: str = os.path.abspath(base) if is_local else base.rstrip("/")
        self.uri = self._base if is_local else uri.rstrip("/")
        self._operations = Operations(
            uri=self.uri,
            is_local=is_local,
            failures=self._backend.failures,
            secrets=_secrets_of(self._backend, values),
            num_tries=_NUM_TRIES,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # An absolute path, because the other process may have another working directory.
        uri = self.uri if self.is_local else self._given_uri
        return _reopen, (uri, self._credential_values, self._variables, self._fsync)

    def __repr__(self) -> str:
        return f"StorageRoot({self.uri!r})"

    def without_fsync(self) -> StorageRoot:
        """The same root, for those who accept that a loss of power costs what was stored in the last minute."""
        return _reopen(self._given_uri, self._credential_values, self._variables, False)

    @property
    def is_local(self) -> bool:
        """Whether keys are files of this machine (or of a file system mounted here)."""
        return self._backend.is_local

    @property
    def backend(self) -> Backend:
        """The kind of storage that the root is on."""
        return self._backend

    @property
    def base_path(self) -> str:
        """The root without its scheme, as its file system names it."""
        return self._base

    @property
    def filesystem(self) -> Any:
        """The root's fsspec file system."""
        if self._fs_pid != os.getpid():
            # This process was forked: the event loop of an asynchronous file system stayed with the parent.
            with self._lock:
                self._fs, _ = self._open_filesystem()
                self._fs_pid = os.getpid()
        return self._fs

    @property
    def operations(self) -> Operations:
        """Runs single operations on this root, with a few tries; a long transfer makes its own of it."""
        return self._operations

    def path_of(self, key: str) -> str:
        """The full path of a key in the root's file system (no scheme).

        Raises:
            StorageError: the key would lie outside the root.
        """
        if ".." in key.split("/"):
            raise StorageError(f"'{key}' is not a key of storage root '{self.uri}': it must not contain '..'")
        return f"{self._base}/{key}" if key else self._base

    def local_path(self, key: str) -> Path:
        """The key as a path of this machine; only when ``is_local``."""
        assert self.is_local
        return Path(self.path_of(key))

    def check_writable(self) -> None:
        """Write and delete a small marker; a root that cannot be reached is known within about 15 seconds.

        Raises:
            StorageError: with the URI and the reason.
        """
        if self.is_local:
            check_directory(self._base)
        else:
            check_server(
                self._operations,
                lambda timeout_s: self._open_filesystem(read_timeout_s=timeout_s),
            )

    def read_bytes(self, key: str, start: int | None = None) -> bytes:
        """The content of a key, from byte ``start`` on.

        Raises:
            NotFoundError: there is no such key.
        """
        path = self.path_of(key)
        return self._found(key, lambda: self._backend.read(self._storage, key, path, start or 0))

    def make_directory(self) -> None:
        """Make the directory of a local root that does not exist yet, which nobody else may look into then."""
        if self.is_local and not os.path.isdir(self._base):
            make_private_directories(Path(self._base))

    def write_bytes(self, key: str, content: bytes) -> None:
        """Create or replace a key; readers see the old or the new content, never a part."""
        self.make_directory()
        self._backend.write(self._storage, key, self.path_of(key), content)

    def write_private(self, key: str, content: bytes) -> None:
        """Create or replace a key that only those read who may write to the root; a server's own rules are as they are.

        Of a local root that others may write to, they may read it.
        """
        if not self.is_local:
            self.write_bytes(key, content)
            return
        self.make_directory()
        shared = os.stat(self._base).st_mode
        mode = 0o600 | (0o060 if shared & stat.S_IWGRP else 0) | (0o006 if shared & stat.S_IWOTH else 0)
        local_files.write_whole(self.path_of(key), content, mode=mode)

    def create_exclusive(self, key: str, content: bytes) -> bool:
        """Create a key unless it exists; False when someone else was first.

        Contents should tell writers apart: when a server creates the key but its answer is lost, the key counts as
        created here if it holds this content, and as someone else's if not or if the content is empty.
        """
        self.make_directory()
        return self._backend.create(self._storage, key, self.path_of(key), content)

    def read_json(self, key: str) -> Any:
        """A key's content as JSON.

        Raises:
            NotFoundError: there is no such key.
            StorageError: it is not JSON.
        """
        try:
            return json.loads(self.read_bytes(key))
        except ValueError as err:
            raise StorageError(f"'{key}' in storage root '{self.uri}' is damaged: {err}") from err

    def write_json(self, key: str, value: Any) -> None:
        """Create or replace a key with a JSON document."""
        self.write_bytes(key, dump_json(value, indent=1).encode())

    def exists(self, key: str) -> bool:
        """Whether the key, or any key below it, exists."""
        return self._backend.exists(self._storage, key, self.path_of(key))

    def size_bytes(self, key: str) -> int:
        """Size of a key.

        Raises:
            NotFoundError: there is no such key.
        """
        path = self.path_of(key)
        return self._found(key, lambda: self._backend.size_bytes(self._storage, key, path))

    def list_names(self, prefix: str) -> list[str]:
        """Names directly below a prefix, sorted; empty when there are none."""
        path = self.path_of(prefix)
        try:
            return sorted(self._backend.list_names(self._storage, prefix, path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def list_files(self, prefix: str) -> dict[str, int]:
        """Every file below a prefix: path relative to it -> size in bytes."""
        base = self.path_of(prefix)
        found = self._backend.list_files(self._storage, prefix, base)
        return {posixpath.relpath(path, base): num_bytes for path, num_bytes in sorted(found.items())}

    def copy_file(self, source_key: str, key: str) -> None:
        """Copy a key inside the root without moving its bytes through this machine; locally a hard link.

        Raises:
            NotFoundError: there is no such source key.
        """
        source, target = self.path_of(source_key), self.path_of(key)
        self._found(source_key, lambda: self._backend.copy(self._storage, source_key, source, target))

    def sync(self, keys: Sequence[str], *, has_content: bool = True) -> None:
        """Return when what was stored under these keys outlives a loss of power.

        Args:
            has_content: False for ``copy_file``'s, whose content was synced under another key.
        """
        if self._fsync and keys:
            self._backend.sync(self._base, [self.path_of(key) for key in keys], has_content=has_content)

    def delete(self, prefix: str) -> None:
        """Delete a key and everything below it; nothing happens when there is none.

        Raises:
            StorageError: the prefix is empty, or a server failed; some keys may be gone then.
        """
        if not prefix.strip("/"):
            raise StorageError(f"storage root '{self.uri}' is not deleted as a whole; name a key.")
        self._backend.delete(self._storage, prefix, self.path_of(prefix))

    @property
    def _storage(self) -> OpenStorage:
        return OpenStorage(self.filesystem, self._operations)

    def _open_filesystem(self, read_timeout_s: float | None = None) -> tuple[Any, str]:
        return open_filesystem(
            self._given_uri, self._credential_values, variables=self._variables, read_timeout_s=read_timeout_s
        )

    def _found(self, key: str, operation: Callable[[], _Result]) -> _Result:
        try:
            return operation()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as err:
            raise self._operations.missing(key) from err


def _reopen(
    uri: str, values: Mapping[str, str] | None, variables: Mapping[str, str], fsync: bool = True
) -> StorageRoot:
    root = StorageRoot.__new__(StorageRoot)
    root._open(uri, values, variables, fsync)
    return root


def _read_credential_values(uri: str, backend: Backend, name: str | None) -> Mapping[str, str] | None:
    if name is None:
        return None
    credential = read_credential(name)
    needed = backend.credential_type.name if backend.credential_type else None
    if credential.type != needed:
        wanted = f"one of type {needed}" if needed else "none"
        raise StorageError(f"storage root '{uri}' needs {wanted}; credential '{name}' is of type {credential.type}")
    return credential.values


def _secrets_of(backend: Backend, values: Mapping[str, str] | None) -> tuple[str, ...]:
    """The values of a credential that no message may show."""
    return tuple(value for name, value in (values or {}).items() if name not in backend.public_values and value)
