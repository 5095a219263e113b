"""Files that only this user reads, from the first moment on."""

from __future__ import annotations

import os


def create_private(path: str | os.PathLike[str], content: bytes, *, is_durable: bool = False) -> None:
    """Create a file of mode 0600; there is no time at which others could open it.

    Args:
        is_durable: return only when the content is on the disk.
    Raises:
        FileExistsError: there is something at the path.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        if is_durable:
            file.flush()
            os.fsync(file.fileno())
