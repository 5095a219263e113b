"""A node's directory for one job: the template's mount paths live below it, ``<sandbox>/workspace`` for ``/workspace``.

<temp>/periflow-<uid>/<job key>/node-<rank>/          the sandbox; node-<rank>.1 after one that was abandoned
    root/<mount paths...>                             what the command sees
    snapshots/                                        checkpoints on their way to the storage root
    claim                                             whose it is
    session                                           the socket of the SDK's sessions
    python/                                           the command's Python, into which it installs
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import posixpath
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from periflow_ray.errors import StorageError
from periflow_ray.jobs import require_job
from periflow_ray.private_files import hold_directory, is_own_directory, make_own_directory, make_private_directories
from periflow_ray.sdk.session import ENDED_STEP_MARK, SAVED_STEP_MARK, UNFINISHED_MARK
from periflow_ray.store.keys import WORKSPACE_FILE, job_key, leads_out
from periflow_ray.store.read_only import remove_tree
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import download_file

_ABANDONED_MARK = ".abandoned"
REMOVE_TIMEOUT_S = 10.0
_REMOVE_INTERVAL_S = 0.1


class Sandbox:
    """Creates and removes one node's directories of a job."""

    def __init__(self, storage_uri: str, job_id: int, node_rank: int) -> None:
        # Several storage roots may use the same machine, each with a job 1.
        root_key = hashlib.sha256(storage_uri.encode()).hexdigest()[:8]
        self.job_dir = _base_dir() / f"{root_key}-{job_id}"
        self._name = f"node-{node_rank}"
        self.directory = self._find_directory()
        self._claim_file = self.directory / "claim"
        self._held_fd: int | None = None
        self.root_dir = self.directory / "root"
        self.snapshots_dir = self.directory / "snapshots"
        # A Unix-domain socket's path may have 107 bytes at most, so it must not lie below a long TMPDIR.
        self.socket_path = self.directory / "session"
        self.launcher_path = self.directory / "warm"
        self.python_dir = self.directory / "python"
        self.marker = ("PERIFLOW_SANDBOX", str(self.directory))

    def create(self, claim: str) -> None:
        """Make the directories; an earlier attempt's workspace stays, its unfinished snapshots go.

        Args:
            claim: the job's; everything of another job that had its number is deleted first.
        Raises:
            PermissionError: the directory of all sandboxes is another user's, or others may write to it.
        """
        make_own_directory(self.job_dir.parent)
        if not self._claim_file.exists() or self._claim_file.read_text() != claim:
            remove_tree(self.directory)
        make_private_directories(self.directory)
        self._claim_file.write_text(claim)
        make_private_directories(self.root_dir)
        shutil.rmtree(self.snapshots_dir, ignore_errors=True)
        make_private_directories(self.snapshots_dir)
        steps = (self.directory / SAVED_STEP_MARK, self.directory / ENDED_STEP_MARK)
        for mark in (self.socket_path, *steps, *self.directory.glob(f"{UNFINISHED_MARK}*")):
            mark.unlink(missing_ok=True)

    def hold(self) -> None:
        """Keep ``remove``, in any process, and what clears out /tmp from deleting under this process's hands."""
        self.release()
        self._held_fd = hold_directory(self.directory)

    def release(self) -> None:
        """Nothing more is written here; the end of the process says so, too."""
        if self._held_fd is not None:
            os.close(self._held_fd)
            self._held_fd = None

    def path_of(self, mount_path: str) -> Path:
        """Where an absolute mount path of the template is on this machine."""
        return self.root_dir / mount_path.lstrip("/")

    def unpack_workspace(
        self, root: StorageRoot, job_id: int, mount_path: str, workspace_of: int | None = None
    ) -> bool:
        """Fetch and unpack the job's workspace, once per node, and what of it has been deleted since.

        Args:
            workspace_of: the job that has it; None for the job itself.
        Returns:
            Whether something had been deleted.
        """
        target = self.path_of(mount_path)
        make_private_directories(target)
        key = job_key(workspace_of or job_id, WORKSPACE_FILE)

        def unpack(is_again: bool) -> list[str]:
            if not root.exists(key):
                require_job(root, job_id, self._claim_file.read_text())
                return []
            archive = self.directory / WORKSPACE_FILE
            download_file(root, key, archive)
            with tarfile.open(archive) as packed:
                names = _extract(packed, target, is_again=is_again)
            archive.unlink()
            return names

        return self.fill("workspace", target, unpack)

    def fill(
        self,
        name: str,
        target: Path,
        fill: Callable[[bool], Iterable[str]],
        is_gone: Callable[[Iterable[bool]], bool] = lambda is_there: not all(is_there),
    ) -> bool:
        """Fill a directory once per node, and again where something that it was filled with has been deleted since.

        Args:
            name: by which the sandbox remembers what was in it.
            fill: fills it, and gives the paths of what is in it; its argument is whether it was filled before.
            is_gone: decides by whether each of them is there; usually one that is missing is enough.
        Returns:
            Whether something had been deleted.
        """
        paths = self.filled_with(name)
        if paths is not None and not (paths and is_gone(os.path.lexists(target / path) for path in paths)):
            return False
        self._mark_of(name).write_text(json.dumps(list(fill(paths is not None))))
        return paths is not None

    def filled_with(self, name: str) -> list[str] | None:
        """The paths that ``fill`` brought under a name; None if it never did, or not to its end."""
        try:
            paths: list[str] = json.loads(self._mark_of(name).read_text())
        except (OSError, ValueError):
            return None
        return paths

    def _mark_of(self, name: str) -> Path:
        return self.directory / f".{name}-ready"

    def forget_workspace(self, mount_path: str) -> None:
        """Let the next ``unpack_workspace`` fetch it anew."""
        self._mark_of("workspace").unlink(missing_ok=True)
        remove_tree(self.path_of(mount_path))

    def abandon(self) -> None:
        """Never use these directories again: a process that cannot be ended may still write into them.

        A ``Sandbox`` that is made from now on has others.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.directory / _ABANDONED_MARK).touch()
        self.release()

    def remove(self) -> None:
        """Delete the node's directories, and the job's when no other node of it is left here.

        Waits for processes that hold them, which Ray may be ending just now: what one of them writes meanwhile would
        stay for ever. One that does not end is not waited for longer than ``REMOVE_TIMEOUT_S``.
        """
        if not is_own_directory(self.job_dir.parent):
            return
        deadline_s = time.monotonic() + REMOVE_TIMEOUT_S
        for directory in (*self.job_dir.glob(f"{self._name}.*"), self.job_dir / self._name):
            while directory.exists():
                is_late = time.monotonic() > deadline_s
                if is_late or not _is_held(directory):
                    shutil.rmtree(directory, ignore_errors=True)
                if is_late:
                    break
                if directory.exists():
                    time.sleep(_REMOVE_INTERVAL_S)
        try:
            self.job_dir.rmdir()
            self.job_dir.parent.rmdir()
        except OSError:  # Another node or job still has its sandbox here.
            return

    def _find_directory(self) -> Path:
        directory = self.job_dir / self._name
        for number in itertools.count(1):
            if not (directory / _ABANDONED_MARK).exists():
                break
            directory = self.job_dir / f"{self._name}.{number}"
        return directory


def _is_held(directory: Path) -> bool:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # A file system without locks.
        return False
    finally:
        os.close(fd)
    return False


def _extract(packed: tarfile.TarFile, target: Path, *, is_again: bool) -> list[str]:
    """Unpack a workspace, of which nothing may lie elsewhere.

    Args:
        is_again: what is there already stays: the job's command may have changed it.
    Returns:
        The names of all that is in the workspace.
    Raises:
        tarfile.TarError, StorageError: something in it would.
    """
    names = [name.lstrip("/") for name in packed.getnames()]
    wanted = [member for member in packed if not (is_again and os.path.lexists(target / member.name.lstrip("/")))]
    if hasattr(tarfile, "data_filter"):
        packed.extractall(target, wanted, filter="data")
        return names
    # Python 3.10 before 3.10.12 and 3.11 before 3.11.4, as some distributions have them.
    for member in packed:
        leads_to = member.linkname
        if member.issym():
            leads_to = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), leads_to))
        is_link = (member.issym() and not leads_to.startswith(("/", ".."))) or (
            member.islnk() and not leads_out(leads_to)
        )
        if leads_out(member.name) or not (member.isreg() or member.isdir() or is_link):
            raise StorageError(f"the workspace is refused: '{member.name}' in it does not stay inside the sandbox")
    packed.extractall(target, wanted)
    return names


def _base_dir() -> Path:
    directory = Path(tempfile.gettempdir())
    if len(str(directory)) > 50:
        directory = Path("/tmp")
    return directory / f"periflow-{os.getuid()}"
