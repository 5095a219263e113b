"""Packages the workspace directory, without what ``.gitignore`` and ``.pfignore`` leave out."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from periflow_ray.errors import WorkspaceError
from periflow_ray.store.shortages import describe_error
from periflow_ray.store.trees import TreeEntry, list_tree
from periflow_ray.submit.ignore_rules import IgnoreRules

ALWAYS_IGNORED = frozenset({".git", "__pycache__", ".venv", ".ipynb_checkpoints", ".DS_Store"})
MAX_WORKSPACE_BYTES = 512 << 20
# Python's own way to make and delete folders ends near 1,000 levels, also on the job's machines.
MAX_DEPTH = 200
NUM_LISTED_OFFENDERS = 10


@dataclass(frozen=True)
class Workspace:
    """What will be packaged.

    Args:
        name: below the mount path: ``-d ./cifar`` appears as ``<mount_path>/cifar``.
        files: paths relative to ``directory`` -> size in bytes.
        entries: directories and links.
        skipped: full paths of what cannot be packaged, and why.
        ignored: what rules leave out; a directory, with a slash at its end, stands for all that is in it.
        git_trouble: why git does not say what it tracks and ignores, where there is a repository.
    """

    directory: Path
    name: str
    files: Mapping[str, int]
    entries: Sequence[TreeEntry] = ()
    skipped: Sequence[tuple[str, str]] = ()
    ignored: Sequence[str] = ()
    git_trouble: str | None = None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())


def scan_workspace(directory: Path, max_bytes: int = MAX_WORKSPACE_BYTES) -> Workspace:
    """Find the files to package.

    Args:
        directory: the workspace; its last path component becomes its name in the job.
        max_bytes: size above which it is refused.
    Raises:
        WorkspaceError: not a directory, unreadable, or too large (the largest files are listed).
    """
    resolved = directory.resolve()
    if not resolved.is_dir():
        what = "is not a directory" if resolved.exists() else "does not exist"
        raise WorkspaceError(f"workspace '{directory}' {what}. Give the directory with your script: -d DIR")
    if not resolved.name or not workspace_name(directory):
        raise WorkspaceError(f"workspace '{directory}' is the root of the file system. Give a directory below it.")
    workspace = _collect(resolved, workspace_name(directory))
    if workspace.size > max_bytes:
        raise WorkspaceError(_describe_offenders(directory, workspace, max_bytes))
    return workspace


def pack_workspace(workspace: Workspace, target: Path) -> None:
    """Write the workspace as a gzip-compressed tar archive, everything below ``<workspace name>/``.

    Raises:
        WorkspaceError: a file cannot be read, or the archive cannot be written.
    """
    try:
        with tarfile.open(target, "w:gz", compresslevel=1) as archive:
            archive.addfile(
                _describe_entry(workspace.name, TreeEntry("", None, workspace.directory.stat().st_mtime_ns))
            )
            for entry in workspace.entries:
                archive.addfile(_describe_entry(f"{workspace.name}/{entry.path}", entry))
            for relative in workspace.files:
                _add_file(archive, workspace, relative)
    except OSError as err:
        raise WorkspaceError(f"the workspace cannot be packed into '{target}': {describe_error(err)}") from err


def workspace_name(directory: Path) -> str:
    """As the user calls it: a link keeps its own name, and ``.`` has one."""
    return os.path.basename(os.path.abspath(directory))


def _collect(root: Path, name: str) -> Workspace:
    rules = IgnoreRules(root)
    ignored: list[str] = []

    def is_wanted(entry: os.DirEntry[str]) -> bool:
        if entry.name in ALWAYS_IGNORED:
            return False
        path = Path(entry.path)
        is_dir = entry.is_dir(follow_symlinks=False)
        if rules.ignores(path, is_dir):
            ignored.append(path.relative_to(root).as_posix() + ("/" if is_dir else ""))
            return False
        if is_dir:
            if len(path.relative_to(root).parts) > MAX_DEPTH:
                raise WorkspaceError(
                    f"workspace '{root}' has more than {MAX_DEPTH} levels of folders. Add the deep ones to "
                    f"'{root / '.pfignore'}': {'/'.join(path.relative_to(root).parts[:5])}/..."
                )
            rules.enter(path)
        return True

    skipped: list[tuple[str, str]] = []
    try:
        # Whoever wrote a link that leads out may be another one than who submits it, and have keys in mind.
        files, entries = list_tree(
            root, follows_links_out=False, wants=is_wanted, on_skipped=lambda *what: skipped.append(what)
        )
    except OSError as err:
        raise WorkspaceError(f"cannot read '{err.filename or root}': {err.strerror or err}") from err
    sizes = {file.path: file.stat.st_size for file in files}
    return Workspace(root, name, dict(sorted(sizes.items())), entries, skipped, ignored, rules.trouble)


def _add_file(archive: tarfile.TarFile, workspace: Workspace, relative: str) -> None:
    path = workspace.directory / relative
    name = f"{workspace.name}/{relative}"
    try:
        # What has become a pipe since it was listed would never open, a link could lead anywhere.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(f"it is no file any more: '{path}'")
            info = _anonymous(archive.gettarinfo(arcname=name, fileobj=file))
            # A second name of a file that is packed already would become a link without content: pack it again, so
            # that each path stands on its own.
            info.type = tarfile.REGTYPE
            info.size = os.fstat(file.fileno()).st_size
            archive.addfile(info, file)
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # Of the archive.
            raise
        raise WorkspaceError(f"cannot read '{path}': {err.strerror or err}") from err


def _describe_entry(name: str, entry: TreeEntry) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mtime = (entry.mtime_ns or 0) / 1e9
    if entry.link_to is None:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    else:
        info.type, info.mode, info.linkname = tarfile.SYMTYPE, 0o777, entry.link_to
    return info


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def _describe_offenders(directory: Path, workspace: Workspace, max_bytes: int) -> str:
    largest = sorted(workspace.files.items(), key=lambda item: -item[1])[:NUM_LISTED_OFFENDERS]
    listed = "\n".join(f"  {_mebibytes(size):>10}  {path}" for path, size in largest)
    return (
        f"workspace '{directory}' has {_mebibytes(workspace.size)} in {len(workspace.files)} files; at most "
        f"{_mebibytes(max_bytes)} are allowed. Add what the job does not need to '{directory / '.pfignore'}' (as in "
        f".gitignore), or make data a dataset (periflow-ray datastore upload). The largest files:\n{listed}"
    )


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
