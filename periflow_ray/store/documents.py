"""The documents of a storage root; ``periflow_ray.documents`` says what a document is, and how its kind may change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from periflow_ray.documents import (
    check_format,
    dump_document,
    format_of,
    parse_document,
    parse_entries,
    parse_fields,
)
from periflow_ray.errors import DocumentError, NotFoundError
from periflow_ray.store.root import StorageRoot

__all__ = [
    "OnUnreadable",
    "check_format",
    "describe_key",
    "dump_document",
    "format_of",
    "parse_document",
    "parse_entries",
    "parse_fields",
    "read_document",
    "read_each",
    "write_document",
    "write_private_document",
]

Document = TypeVar("Document")
OnUnreadable = Callable[[DocumentError], None]


def read_document(root: StorageRoot, key: str, kind: type[Document]) -> Document:
    """A document of a storage root.

    Args:
        kind: a dataclass, or a pydantic model.
    Raises:
        NotFoundError: there is no such key.
        DamagedDocumentError: it is no JSON object, or lacks a field.
        NewerFormatError: a later version wrote it, in a format that this one does not know.
    """
    return parse_document(kind, root.read_bytes(key), describe_key(root, key))


def write_document(root: StorageRoot, key: str, document: Any, *, kind: type | None = None) -> None:
    """Create or replace a document of a storage root; see ``dump_document``."""
    root.write_bytes(key, dump_document(document, kind=kind))


def write_private_document(root: StorageRoot, key: str, document: Any) -> None:
    """Create or replace a document that has values which not everybody may read; see ``StorageRoot.write_private``."""
    root.write_private(key, dump_document(document))


def read_each(
    read: Callable[[Any], Document], names: Iterable[Any], on_unreadable: OnUnreadable | None
) -> list[Document]:
    """Read documents for a list; what does not exist (any more) is left out.

    Args:
        read: reads the document of a name.
        on_unreadable: told of each document that is damaged or too new, which is left out then.
    Raises:
        DocumentError: there is such a document, and nobody to be told of it.
    """
    found = []
    for name in names:
        try:
            found.append(read(name))
        except NotFoundError:
            continue
        except DocumentError as err:
            if on_unreadable is None:
                raise
            on_unreadable(err)
    return found


def describe_key(root: StorageRoot, key: str) -> str:
    """How messages name a document of a storage root."""
    return f"'{key}' in storage root '{root.uri}'"
