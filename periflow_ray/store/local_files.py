"""Files of this machine: whole or not there at all, copied inside the kernel where it can.

What is being written has a hidden name, ``.<name>.<8 hex digits>.periflow-partial``; one that a killed process left is
harmless.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator

PARTIAL_SUFFIX = ".periflow-partial"
_PARTIAL = re.compile(rf"\.(.*\.)?[0-9a-f]{{8}}{re.escape(PARTIAL_SUFFIX)}", re.DOTALL)
# File systems allow names of 255 bytes; the rest is for what the hidden name adds.
_MAX_NAME_BYTES = 225
# FICLONE of <linux/fs.h>: the copy shares the blocks until one of the two files is written to.
_FICLONE = 0x40049409
COPY_BYTES = 64 << 20
_READ_BYTES = 1 << 20
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})
_NO_KERNEL_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.EBADF})


def is_partial_name(name: str) -> bool:
    """Whether a name is that of a file that is still being written, or whose writer was killed."""
    return _PARTIAL.fullmatch(name) is not None


@contextlib.contextmanager
def replacing(target: str) -> Iterator[str]:
    """A hidden path to create, which becomes ``target`` when the block ends well and vanishes when it does not.

    The target's directory is made.
    """
    partial = _partial_path(target)
    try:
        yield partial
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def write_whole(target: str, content: bytes, *, mode: int = 0o666) -> None:
    """Create or replace a file; readers see the old or the new content, never a part.

    Args:
        mode: its permissions, less the umask's.
    """
    with replacing(target) as partial, open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def create_whole(target: str, content: bytes) -> bool:
    """Create a file with its content in one step; False when there is one."""
    partial = _partial_path(target)
    try:
        with open(partial, "xb") as file:
            file.write(content)
        try:
            # Unlike a rename, a link does not replace; unlike exclusive opening, it never shows an empty file.
            os.link(partial, target)
        except OSError as err:
            if err.errno not in _NO_LINK:
                raise
            with open(target, "xb") as file:
                file.write(content)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)
    return True


def sync(path: str) -> None:
    """Let a file's content, or a directory's names, outlive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as err:
        # Some network file systems keep directories by themselves.
        if err.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def link(source: str, target: str) -> bool:
    """Put a file at another path as a hard link; False where that cannot be, for example across file systems.

    Only for files that nobody writes to in place: both names are the same file then.
    """
    try:
        with replacing(target) as partial:
            os.link(source, partial)
    except OSError as err:
        if err.errno not in _NO_LINK:
            raise
        return False
    # Replacing does nothing where both names are links to the same file already.
    with contextlib.suppress(OSError):
        os.unlink(partial)
    return True


def link_or_copy(source: str, target: str) -> None:
    """Put a file at another path, as a hard link where that can be; see ``link``."""
    if not link(source, target):
        with replacing(target) as partial:
            copy_content(source, partial)


def copy_content(
    source: str, target: str, *, chunk_bytes: int = COPY_BYTES, on_chunk: Callable[[int], None] | None = None
) -> None:
    """Copy a file's content to a new file, inside the kernel where the file systems can.

    Args:
        on_chunk: called before each piece with its size in bytes; it may wait, or raise to end the copy.
    """
    with open(source, "rb", buffering=0) as reader, open(target, "xb", buffering=0) as writer:
        num_left = os.fstat(reader.fileno()).st_size
        if num_left > _READ_BYTES and _clone(reader.fileno(), writer.fileno()):
            return
        # A small file is copied sooner than the kernel says whether it could.
        while num_left > _READ_BYTES:
            num_asked = min(chunk_bytes, num_left)
            if on_chunk is not None:
                on_chunk(num_asked)
            num_copied = _copy_in_kernel(reader.fileno(), writer.fileno(), num_asked)
            if num_copied == 0:
                break
            num_left -= num_copied
        # The rest where the kernel cannot copy between the two, and what was appended in the meantime.
        while content := reader.read(min(chunk_bytes, _READ_BYTES)):
            if on_chunk is not None:
                on_chunk(len(content))
            view = memoryview(content)
            while view:
                view = view[writer.write(view) :]


def _partial_path(target: str) -> str:
    directory, name = os.path.split(target)
    if not os.path.isdir(directory):
        os.makedirs(directory, exist_ok=True)
    shown = name + "." if len(os.fsencode(name)) <= _MAX_NAME_BYTES else ""
    return os.path.join(directory, f".{shown}{os.urandom(4).hex()}{PARTIAL_SUFFIX}")


def _clone(source_fd: int, target_fd: int) -> bool:
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError:
        return False
    return True


def _copy_in_kernel(source_fd: int, target_fd: int, num_bytes: int) -> int:
    """Bytes copied; 0 where the system or the file systems cannot, or say nothing of the source's size."""
    if not hasattr(os, "copy_file_range"):  # macOS.
        return 0
    try:
        return os.copy_file_range(source_fd, target_fd, num_bytes)
    except OSError as err:
        if err.errno not in _NO_KERNEL_COPY:
            raise
        return 0
