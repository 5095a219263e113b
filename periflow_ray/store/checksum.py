"""Checksums of files: XXH3 with 128 bits, fast enough to cost nothing beside the disk, good against damage.

It is no defence against someone who forges files: who can write to a storage root can write its manifests too.
"""

from __future__ import annotations

from pathlib import Path

import xxhash

from periflow_ray.errors import StorageError

_PREFIX = "xxh3_128:"
_BUFFER_BYTES = 1 << 20


def checksum_file(path: Path) -> str:
    """The checksum of a file's content: ``xxh3_128:`` and 32 hexadecimal digits."""
    digest = xxhash.xxh3_128()
    buffer = bytearray(_BUFFER_BYTES)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while num_bytes := file.readinto(buffer):
            digest.update(view[:num_bytes])
    return _PREFIX + digest.hexdigest()


def checksum_bytes(content: bytes) -> str:
    """The checksum that a file with this content has."""
    return _PREFIX + xxhash.xxh3_128_hexdigest(content)


def is_checksum_of(path: Path, checksum: str) -> bool:
    """Whether a file's content has this checksum.

    Raises:
        StorageError: the checksum is not of a kind that this version knows.
    """
    if not checksum.startswith(_PREFIX):
        raise StorageError(f"checksum '{checksum}' is not of a known kind: it must start with '{_PREFIX}'")
    return checksum_file(path) == checksum
