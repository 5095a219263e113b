"""The storage root: one URI under which everything of the product is kept, resolved here and nowhere else.

Keys are relative paths with forward slashes, for example ``jobs/12/plan.json``.
"""

from __future__ import annotations

import glob
import json
import os
import posixpath
import shutil
import uuid
from pathlib import Path
from typing import Any

import fsspec
import platformdirs
from fsspec.implementations.local import LocalFileSystem

from periflow_ray.errors import NotFoundError, StorageError

STORAGE_VARIABLE = "PERIFLOW_STORAGE"


class StorageRoot:
    """A place to keep files under keys.

    Args:
        uri: ``/path``, ``file:///path``, ``s3://bucket/prefix``, ``abfs://container/prefix``, ``gs://...``.
    Raises:
        StorageError: the scheme is unknown or needs an extra that is not installed.
    """

    def __init__(self, uri: str) -> None:
        try:
            # dircache off: other machines write below the same root all the time.
            fs, base = fsspec.core.url_to_fs(uri, use_listings_cache=False)
        except (ValueError, ImportError) as err:
            raise StorageError(f"storage root '{uri}' cannot be opened: {err}") from err
        self._fs = fs
        self._is_local = isinstance(fs, LocalFileSystem)
        self._base: str = os.path.abspath(base) if self._is_local else base.rstrip("/")
        self.uri = self._base if self._is_local else fs.unstrip_protocol(self._base)

    @property
    def is_local(self) -> bool:
        """Whether keys are files of this machine (or of a file system mounted here)."""
        return self._is_local

    @property
    def base_path(self) -> str:
        """The root without its scheme, as its file system names it."""
        return self._base

    def arrow_filesystem(self) -> Any:
        """The root's file system for pyarrow and Ray Train, which resolve paths below ``base_path``."""
        import pyarrow.fs

        if self._is_local:
            return pyarrow.fs.LocalFileSystem()
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self._fs))

    def path_of(self, key: str) -> str:
        """The full path of a key in the root's file system (no scheme)."""
        return f"{self._base}/{key}" if key else self._base

    def local_path(self, key: str) -> Path:
        """The key as a path of this machine; only when ``is_local``."""
        assert self._is_local
        return Path(self._base) / key

    def check_writable(self) -> None:
        """Write and delete a small marker.

        Raises:
            StorageError: with the URI and the reason.
        """
        marker = f".writable-{uuid.uuid4().hex}"
        try:
            self.write_bytes(marker, b"")
            self.delete(marker)
        except (OSError, StorageError) as err:
            raise StorageError(f"storage root '{self.uri}' is not writable: {err}") from err

    def read_bytes(self, key: str, start: int | None = None) -> bytes:
        """The content of a key, from byte ``start`` on.

        Raises:
            NotFoundError: there is no such key.
        """
        try:
            if self._is_local:
                with open(self.path_of(key), "rb") as file:
                    file.seek(start or 0)
                    return file.read()
            path = self.path_of(key)
            # Object stores refuse a range that begins at the end.
            if start and start >= self._fs.size(path):
                return b""
            content: bytes = self._fs.cat_file(path, start=start)
            return content
        except (FileNotFoundError, NotADirectoryError) as err:
            raise NotFoundError(f"'{key}' does not exist in storage root '{self.uri}'") from err

    def write_bytes(self, key: str, content: bytes) -> None:
        """Create or replace a key; readers see the old or the new content, never a part."""
        if not self._is_local:
            self._fs.pipe_file(self.path_of(key), content)
            return
        path = self.local_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def create_exclusive(self, key: str, content: bytes) -> bool:
        """Create a key unless it exists; False when someone else was first."""
        try:
            if self._is_local:
                path = self.local_path(key)
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "xb") as file:
                    file.write(content)
            else:
                self._fs.pipe_file(self.path_of(key), content, mode="create")
        except FileExistsError:
            return False
        return True

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
        return bool(self._fs.exists(self.path_of(key)))

    def list_names(self, prefix: str) -> list[str]:
        """Names directly below a prefix, sorted; empty when there are none."""
        try:
            if self._is_local:
                return sorted(name for name in os.listdir(self.path_of(prefix)) if not name.startswith("."))
            entries = self._fs.ls(self.path_of(prefix), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({posixpath.basename(entry.rstrip("/")) for entry in entries} - {""})

    def list_files(self, prefix: str) -> dict[str, int]:
        """Every file below a prefix: path relative to it -> size in bytes."""
        base = self.path_of(prefix)
        found = self._fs.find(base, detail=True)
        return {posixpath.relpath(path, base): int(info["size"]) for path, info in sorted(found.items())}

    def upload_file(self, source: Path, key: str) -> None:
        """Copy a file of this machine to a key."""
        if not self._is_local:
            self._fs.put_file(str(source), self.path_of(key))
            return
        path = self.local_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            shutil.copyfile(source, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def download_file(self, key: str, target: Path) -> None:
        """Copy a key to a file of this machine.

        Raises:
            NotFoundError: there is no such key.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if self._is_local:
                shutil.copyfile(self.local_path(key), target)
            else:
                self._fs.get_file(self.path_of(key), str(target))
        except FileNotFoundError as err:
            raise NotFoundError(f"'{key}' does not exist in storage root '{self.uri}'") from err

    def delete(self, prefix: str) -> None:
        """Delete a key and everything below it; nothing happens when there is none."""
        if not self.exists(prefix):
            return
        if self._is_local or not glob.has_magic(prefix):
            self._fs.rm(self.path_of(prefix), recursive=True)
            return
        # rm would take the key for a pattern and delete other keys too.
        for path in self._fs.find(self.path_of(prefix)):
            self._fs.rm_file(path)


def resolve_storage_uri(option: str | None = None) -> str:
    """The storage root to use: the option, else ``PERIFLOW_STORAGE``, else the config file, else a user directory."""
    configured = option or os.environ.get(STORAGE_VARIABLE) or _read_config().get("storage")
    if configured:
        return str(configured)
    return str(Path(platformdirs.user_data_dir("periflow-ray", appauthor=False)) / "storage")


def _read_config() -> dict[str, Any]:
    path = Path(platformdirs.user_config_dir("periflow-ray", appauthor=False)) / "config.yaml"
    if not path.is_file():
        return {}
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as err:
        raise StorageError(f"{path} is not valid YAML: {err}") from err
    if config is None:
        return {}
    if not isinstance(config, dict) or not isinstance(config.get("storage", ""), str):
        raise StorageError(f"{path} must be a mapping such as 'storage: s3://bucket/prefix'.")
    return config
