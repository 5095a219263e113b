"""The storage root: one URI under which everything of the product is kept, resolved here and nowhere else.

Keys are relative paths with forward slashes, for example ``jobs/12/plan.json``.

Long because all that can be done with a key is a method of the root.
"""

from __future__ import annotations

import json
import os
import posixpath
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.store import local_files
from periflow_ray.store.failures import is_already_there
from periflow_ray.store.filesystem import (
    cloud_variables,
    credential_type_of,
    open_filesystem,
    secrets_of,
)
from periflow_ray.store.operations import Operations
from periflow_ray.store.parts import copy_on_server, delete_on_server
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
    Raises:
        StorageError: the scheme is unknown or needs an extra that is not installed, or the credential does not fit.
        NotFoundError: there is no credential of that name.
    """

    def __init__(self, uri: str, credential: str | None = None) -> None:
        self._open(uri, _read_credential_values(uri, credential), cloud_variables())

    def _open(self, uri: str, values: Mapping[str, str] | None, variables: Mapping[str, str]) -> None:
        self._given_uri = uri
        self._credential_values = values
        self._variables = variables
        self._lock = threading.Lock()
        fs, base = self._open_filesystem()
        self._fs, self._fs_pid = fs, os.getpid()
        self._is_local = isinstance(fs, LocalFileSystem)
        self._base: str = os.path.abspath(base) if self._is_local else base.rstrip("/")
        self.uri = self._base if self._is_local else uri.rstrip("/")
        self._operations = Operations(
            uri=self.uri, is_local=self._is_local, secrets=secrets_of(values), num_tries=_NUM_TRIES
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # An absolute path, because the other process may have another working directory.
        uri = self.uri if self._is_local else self._given_uri
        return _reopen, (uri, self._credential_values, self._variables)

    def __repr__(self) -> str:
        return f"StorageRoot({self.uri!r})"

    @property
    def is_local(self) -> bool:
        """Whether keys are files of this machine (or of a file system mounted here)."""
        return self._is_local

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

    def arrow_filesystem(self) -> Any:
        """The root's file system for pyarrow and Ray Train, which resolve paths below ``base_path``."""
        if self._is_local:
            import pyarrow.fs

            return pyarrow.fs.LocalFileSystem()
        from periflow_ray.store.arrow import open_arrow_filesystem

        return open_arrow_filesystem(self)

    @property
    def operations(self) -> Operations:
        """What runs single operations on this root, with a few tries; a long transfer makes its own of it."""
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
        assert self._is_local
        return Path(self.path_of(key))

    def check_writable(self) -> None:
        """Write and delete a small marker; a root that cannot be reached is known within about 15 seconds.

        Raises:
            StorageError: with the URI and the reason.
        """
        if self._is_local:
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
        if self._is_local:
            return self._found(key, lambda: _read_local(path, start or 0))
        # Object stores refuse a range that begins at the end, which for an empty key is any range.
        if start and start >= self._size(key):
            return b""
        content: bytes = self._found(key, lambda: self._call("cat_file", path, start=start or None))
        return content

    def write_bytes(self, key: str, content: bytes) -> None:
        """Create or replace a key; readers see the old or the new content, never a part."""
        path = self.path_of(key)
        if self._is_local:
            local_files.write_whole(path, content)
            return
        self._run(key, lambda: self._call("pipe_file", path, content))

    def create_exclusive(self, key: str, content: bytes) -> bool:
        """Create a key unless it exists; False when someone else was first.

        Contents should tell writers apart: when a server creates the key but its answer is lost, the key counts as
        created here if it holds this content, and as someone else's if not or if the content is empty.
        """
        path = self.path_of(key)
        if self._is_local:
            return local_files.create_whole(path, content)
        num_tried = 0

        def create() -> bool:
            nonlocal num_tried
            num_tried += 1
            try:
                self._call("pipe_file", path, content, mode="create")
            except Exception as err:
                if not is_already_there(err):
                    raise
                return num_tried > 1 and bool(content) and self.read_bytes(key) == content
            return True

        # Some S3 servers ignore the condition of an exclusive write; this keeps all but the same moment apart.
        return not self.exists(key) and self._run(key, create)

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
        self.write_bytes(key, json.dumps(value, indent=1).encode())

    def exists(self, key: str) -> bool:
        """Whether the key, or any key below it, exists."""
        path = self.path_of(key)
        if self._is_local:
            return os.path.exists(path)
        try:
            self._run(key, lambda: self._call("info", path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def list_names(self, prefix: str) -> list[str]:
        """Names directly below a prefix, sorted; empty when there are none."""
        path = self.path_of(prefix)
        try:
            if self._is_local:
                return sorted(name for name in os.listdir(path) if not local_files.is_partial_name(name))
            entries = self._run(prefix, lambda: self._call("ls", path, detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []
        # Asked for a file, or for a placeholder that stands for a directory, servers list that itself.
        below = {entry.rstrip("/") for entry in entries} - {path, f"/{path}"}
        return sorted({posixpath.basename(entry) for entry in below} - {""})

    def list_files(self, prefix: str) -> dict[str, int]:
        """Every file below a prefix: path relative to it -> size in bytes."""
        base = self.path_of(prefix)
        found = self._find(prefix)
        sizes = {path: int(info["size"]) for path, info in sorted(found.items()) if info["type"] == "file"}
        if self._is_local:
            sizes = {
                path: size for path, size in sizes.items() if not local_files.is_partial_name(os.path.basename(path))
            }
        return {posixpath.relpath(path, base): size for path, size in sizes.items() if not path.endswith("/")}

    def upload_file(self, source: Path, key: str) -> None:
        """Copy a file of this machine to a key; see ``Transfer`` for many."""
        from periflow_ray.store.transfer import Transfer, UploadItem

        Transfer(self).upload_files([UploadItem(source, key)])

    def download_file(self, key: str, target: Path) -> None:
        """Copy a key to a file of this machine; see ``Transfer`` for many.

        Raises:
            NotFoundError: there is no such key.
        """
        from periflow_ray.store.transfer import DownloadItem, Transfer

        Transfer(self).download_files([DownloadItem(key, target, self._size(key), None)])

    def copy_file(self, source_key: str, key: str) -> None:
        """Copy a key inside the root without moving its bytes through this machine; locally a hard link.

        Raises:
            NotFoundError: there is no such source key.
        """
        source, target = self.path_of(source_key), self.path_of(key)
        if self._is_local:
            self._found(source_key, lambda: local_files.link_or_copy(source, target))
        else:
            self._found(source_key, lambda: copy_on_server(self._operations, self.filesystem, source, target))

    def delete(self, prefix: str) -> None:
        """Delete a key and everything below it; nothing happens when there is none.

        Raises:
            StorageError: the prefix is empty, or a server failed; some keys may be gone then.
        """
        if not prefix.strip("/"):
            raise StorageError(f"storage root '{self.uri}' is not deleted as a whole; name a key.")
        path = self.path_of(prefix)
        if self._is_local:
            _delete_local(path)
            return
        delete_on_server(self._operations, self.filesystem, prefix, list(self._find(prefix)))

    def _open_filesystem(self, read_timeout_s: float | None = None) -> tuple[Any, str]:
        return open_filesystem(
            self._given_uri, self._credential_values, variables=self._variables, read_timeout_s=read_timeout_s
        )

    def _size(self, key: str) -> int:
        """Bytes of a key."""
        path = self.path_of(key)
        if self._is_local:
            return self._found(key, lambda: os.stat(path).st_size)
        return self._found(key, lambda: int(self._call("info", path)["size"] or 0))

    def _find(self, prefix: str) -> dict[str, Any]:
        path = self.path_of(prefix)
        try:
            found: dict[str, Any] = self._run(prefix, lambda: self._call("find", path, detail=True))
        except FileNotFoundError:
            return {}
        return found

    def _found(self, key: str, operation: Callable[[], _Result]) -> _Result:
        try:
            return self._run(key, operation)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as err:
            raise NotFoundError(f"'{key}' does not exist in storage root '{self.uri}'") from err

    def _run(self, key: str, operation: Callable[[], _Result]) -> _Result:
        return self._operations.run(key, operation)

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._operations.call(self.filesystem, method, *args, **kwargs)


def _reopen(uri: str, values: Mapping[str, str] | None, variables: Mapping[str, str]) -> StorageRoot:
    root = StorageRoot.__new__(StorageRoot)
    root._open(uri, values, variables)
    return root


def _read_credential_values(uri: str, name: str | None) -> Mapping[str, str] | None:
    if name is None:
        return None
    from periflow_ray.credentials import read_credential

    credential = read_credential(name)
    needed = credential_type_of(uri)
    if credential.type != needed:
        wanted = f"one of type {needed}" if needed else "none"
        raise StorageError(f"storage root '{uri}' needs {wanted}; credential '{name}' is of type {credential.type}")
    return credential.values


def _read_local(path: str, start: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read()


def _delete_local(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
