"""A backend by fsspec's own means; others build on it and say what their servers do otherwise."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec

from periflow_ray.credentials.credential_types import CredentialType
from periflow_ray.errors import StorageError
from periflow_ray.store.backends.backend import Backend, Opening, OpenStorage, PartWriter
from periflow_ray.store.failures import Failures

_NUM_DELETERS = 16


class FsspecBackend(Backend):
    """See ``Backend``. Opening hands ``options`` to fsspec, and the file system to ``prepare``."""

    schemes: tuple[str, ...] = ()
    clouds: tuple[str, ...] = ()
    extra: str | None = None
    credential_type: CredentialType | None = None
    public_values: frozenset[str] = frozenset()
    is_local: bool = False
    failures: Failures = Failures()

    def options(self, opening: Opening) -> dict[str, Any]:
        """Arguments of the file system.

        Raises:
            KeyError, ValueError: the credential does not fit.
        """
        return {}

    def prepare(self, fs: Any, opening: Opening) -> None:
        """Change a new file system before it is used."""

    def describe_misfit(self, err: Exception) -> str:
        """Why a file system could not be made, when ``options`` or fsspec raised ValueError or KeyError."""
        if isinstance(err, KeyError):
            return f"the credential has no value '{err.args[0]}'"
        return str(err)

    def open(self, opening: Opening) -> tuple[Any, str]:
        uri = opening.uri
        try:
            # Neither listings nor instances are kept: others write below the same root, and an instance of another
            # thread's or a parent process's event loop must not be met again.
            fs, base = fsspec.core.url_to_fs(
                uri, use_listings_cache=False, skip_instance_cache=True, **self.options(opening)
            )
        except ImportError as err:
            hint = f": pip install 'periflow-ray[{self.extra}]'" if self.extra else f": {err}"
            raise StorageError(f"storage root '{uri}' needs a package that is not installed{hint}") from err
        except (ValueError, KeyError) as err:
            raise StorageError(f"storage root '{uri}' cannot be opened: {self.describe_misfit(err)}") from err
        if self.extra and not base.strip("/"):
            raise StorageError(f"storage root '{uri}' names no bucket or container: {opening.scheme}://NAME/PREFIX")
        self.prepare(fs, opening)
        return fs, base

    def read(self, storage: OpenStorage, key: str, path: str, start: int) -> bytes:
        # Object stores refuse a range that begins at the end, which for an empty key is any range.
        if start and start >= self.size_bytes(storage, key, path):
            return b""
        content: bytes = storage.run(key, "cat_file", path, start=start or None)
        return content

    def write(self, storage: OpenStorage, key: str, path: str, content: bytes) -> None:
        storage.run(key, "pipe_file", path, content)

    def create(self, storage: OpenStorage, key: str, path: str, content: bytes) -> bool:
        num_tried = 0

        def create() -> bool:
            nonlocal num_tried
            num_tried += 1
            try:
                storage.call("pipe_file", path, content, mode="create")
            except Exception as err:
                if not self.failures.is_already_there(err):
                    raise
                return num_tried > 1 and bool(content) and is_own()
            return True

        def is_own() -> bool:
            try:
                return self.read(storage, key, path, 0) == content
            except FileNotFoundError as err:
                raise storage.operations.missing(key) from err

        # Some S3 servers ignore the condition of an exclusive write; this keeps all but the same moment apart.
        return not self.exists(storage, key, path) and storage.operations.run(key, create)

    def exists(self, storage: OpenStorage, key: str, path: str) -> bool:
        try:
            storage.run(key, "info", path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def size_bytes(self, storage: OpenStorage, key: str, path: str) -> int:
        return int(storage.run(key, "info", path)["size"] or 0)

    def list_names(self, storage: OpenStorage, key: str, path: str) -> set[str]:
        entries = storage.run(key, "ls", path, detail=False)
        # Asked for a file, or for a placeholder that stands for a directory, servers list that itself.
        below = {entry.rstrip("/") for entry in entries} - {path, f"/{path}"}
        return {posixpath.basename(entry) for entry in below} - {""}

    def list_files(self, storage: OpenStorage, key: str, path: str) -> dict[str, int]:
        found = self._find(storage, key, path)
        return {
            name: int(info["size"])
            for name, info in found.items()
            # Some tools mark a directory by an empty key.
            if info["type"] == "file" and not name.endswith("/")
        }

    def copy(self, storage: OpenStorage, key: str, source: str, target: str) -> None:
        storage.run(key, "cp_file", source, target)

    def sync(self, base: str, paths: Sequence[str], *, has_content: bool) -> None:
        """Servers answer when it is stored."""

    def delete(self, storage: OpenStorage, key: str, path: str) -> None:
        self.delete_many(storage, key, list(self._find(storage, key, path)))

    def delete_many(self, storage: OpenStorage, key: str, paths: Sequence[str]) -> None:
        def delete(path: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                storage.run(key, "rm_file", path)

        with ThreadPoolExecutor(_NUM_DELETERS) as pool:
            list(pool.map(delete, paths))

    def open_part_writer(
        self, storage: OpenStorage, key: str, path: str, *, num_bytes: int, part_bytes: int
    ) -> PartWriter | None:
        return None

    def _find(self, storage: OpenStorage, key: str, path: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = storage.run(key, "find", path, detail=True)
        except FileNotFoundError:
            return {}
        return found
