"""The protocol of a kind of storage, and the values that cross it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from periflow_ray.credentials.credential_types import CredentialType
from periflow_ray.store.failures import Failures
from periflow_ray.store.operations import Operations


@dataclass(frozen=True)
class Opening:
    """A URI, and how to reach it.

    Args:
        credential_values: as ``read_credential`` gives them; None leaves it to the cloud's usual chain.
        variables: the environment variables in force.
        timeout_s: how long a server may take to answer.
    """

    uri: str
    credential_values: Mapping[str, str] | None = field(repr=False)
    variables: Mapping[str, str] = field(repr=False)
    timeout_s: float

    @property
    def scheme(self) -> str:
        """The URI's scheme; ``file`` for a plain path."""
        return scheme_of(self.uri)


@dataclass(frozen=True)
class OpenStorage:
    """An open fsspec file system, and how operations on it are run."""

    fs: Any
    operations: Operations

    def run(self, key: str, method: str, *args: Any, timeout_s: float | None = None, **kwargs: Any) -> Any:
        """One call of a method of the file system, tried several times; see ``Operations.run``.

        Args:
            key: the key's name for messages.
        """
        return self.operations.run(key, lambda: self.call(method, *args, timeout_s=timeout_s, **kwargs))

    def call(self, method: str, *args: Any, timeout_s: float | None = None, **kwargs: Any) -> Any:
        """One call of a method of the file system, tried once; see ``Operations.call``."""
        return self.operations.call(self.fs, method, *args, timeout_s=timeout_s, **kwargs)


class PartWriter(Protocol):
    """Writes one key in parts of ``part_bytes`` (the last may be smaller); nothing is visible before ``complete``.

    ``begin`` comes first. ``put_part`` may be called from several threads, each index once.
    """

    part_bytes: int

    def begin(self) -> None:
        """Tell the server that parts will come."""

    def put_part(self, index: int, content: bytes) -> None:
        """Send a part; ``index`` counts from 0."""

    def complete(self) -> None:
        """Make the key appear; all parts have been put."""

    def abort(self) -> None:
        """Forget the parts; the key stays as it was."""


class Backend(Protocol):
    """A kind of storage: the facts of it, and what differs from kind to kind. It has no state.

    In all methods ``key`` is the key's name for messages and ``path`` its path in the file system. A key that is not
    there is a ``FileNotFoundError``; what else a server refuses is a ``StorageError``, and locally an ``OSError``.

    Attributes:
        schemes: of its URIs; the first is the one that commands write.
        clouds: names of its cloud that commands take; the first is the one that they show.
        extra: of this package, with what it needs; None where it needs nothing more.
        credential_type: of the credentials that open it, and whose variables belong to it; None where it needs none.
        public_values: values of its credentials that messages may show.
        is_local: keys are files of this machine.
        failures: the meaning of its error codes.
    """

    schemes: tuple[str, ...]
    clouds: tuple[str, ...]
    extra: str | None
    credential_type: CredentialType | None
    public_values: frozenset[str]
    is_local: bool
    failures: Failures

    def open(self, opening: Opening) -> tuple[Any, str]:
        """The fsspec file system of a URI and the URI's path in it; nothing is asked of a server yet.

        Raises:
            StorageError: the extra is not installed, or URI or credential cannot be used.
        """

    def read(self, storage: OpenStorage, key: str, path: str, start: int) -> bytes:
        """The content from byte ``start`` on; none from the end on."""

    def write(self, storage: OpenStorage, key: str, path: str, content: bytes) -> None:
        """Create or replace a key; readers see the old or the new content, never a part."""

    def create(self, storage: OpenStorage, key: str, path: str, content: bytes) -> bool:
        """Create a key unless it exists; False when someone else was first."""

    def exists(self, storage: OpenStorage, key: str, path: str) -> bool:
        """Whether the key, or any key below it, exists."""

    def size_bytes(self, storage: OpenStorage, key: str, path: str) -> int:
        """Size of a key."""

    def list_names(self, storage: OpenStorage, key: str, path: str) -> set[str]:
        """Names directly below a prefix."""

    def list_files(self, storage: OpenStorage, key: str, path: str) -> dict[str, int]:
        """Every file below a prefix: path -> size in bytes."""

    def copy(self, storage: OpenStorage, key: str, source: str, target: str) -> None:
        """Copy one path to another; the bytes stay where they are. ``key`` is the source's."""

    def sync(self, base: str, paths: Sequence[str], *, has_content: bool) -> None:
        """Let what was written to these paths outlive a loss of power, as servers see to by themselves.

        Args:
            base: the root's path, below which all of them are.
            has_content: False if they are names of contents that were synced before.
        """

    def delete(self, storage: OpenStorage, key: str, path: str) -> None:
        """Delete a key and everything below it, if it is there; it is not the root itself."""

    def delete_many(self, storage: OpenStorage, key: str, paths: Sequence[str]) -> None:
        """Delete files by their paths; those that have gone meanwhile are none of them. ``key`` is their prefix."""

    def open_part_writer(
        self, storage: OpenStorage, key: str, path: str, *, num_bytes: int, part_bytes: int
    ) -> PartWriter | None:
        """A writer with parts of at least ``part_bytes``; None where files are sent whole.

        Args:
            num_bytes: size of the whole file.
        """


def scheme_of(uri: str) -> str:
    """The URI's scheme; ``file`` for a plain path."""
    scheme, separator, _ = uri.partition("://")
    return scheme if separator else "file"
