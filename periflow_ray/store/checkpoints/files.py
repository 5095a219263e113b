"""A checkpoint's files: which node stores what, which a node gets back, and where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from periflow_ray.errors import CorruptCheckpointError
from periflow_ray.store.checkpoints.manifest import (
    LocalFile,
    Manifest,
    PlannedFile,
    StoredEntry,
    StoredFile,
    checkpoint_key,
)
from periflow_ray.store.checksum import checksum_file
from periflow_ray.store.keys import key_of_file, leads_out
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.trees import TreeEntry, list_tree, refuse_entry


@dataclass(frozen=True)
class Content:
    """What is in a directory: its files, and its directories and links."""

    files: Sequence[LocalFile]
    entries: Sequence[TreeEntry] = ()


@dataclass(frozen=True)
class Plan:
    """What a checkpoint will consist of, and which node brings it."""

    files: list[PlannedFile]
    entries: list[StoredEntry]


@dataclass(frozen=True)
class FilesPlace:
    """Where a checkpoint's files are: below ``prefix`` in ``root``."""

    root: StorageRoot
    prefix: str

    def key(self, file_key: str) -> str:
        """The key in the root of a key that is relative to the checkpoint's directory."""
        return f"{self.prefix}/{file_key}" if self.prefix else file_key


def describe_tree(directory: Path, on_skipped: Callable[[str, str], None] = lambda path, reason: None) -> Content:
    """Everything below a directory, the files with size and checksum, by path; see ``walk_tree``."""
    files, entries = list_tree(directory, on_skipped=on_skipped)
    described = [
        LocalFile(file.path, file.stat.st_size, checksum_file(Path(file.full_path)), file.is_executable, file.mtime_ns)
        for file in files
    ]
    return Content(described, entries)


def merge_contents(
    contents: Mapping[int, Content],
    previous: Manifest | None = None,
    restored: Manifest | None = None,
) -> Plan:
    """Decide which node stores what: equal files once, differing files of one name once per node.

    After a restart every node has the files of all: what a node was given and left alone gives way to what another
    node wrote since, and is gone where another node deleted it.

    Args:
        contents: what each node has.
        previous: an earlier committed checkpoint of the job, whose equal files are copied instead of uploaded.
        restored: the checkpoint that the nodes were given at the beginning of the attempt.
    """
    stale = set() if restored is None else _find_stale(contents, restored)
    earlier: dict[tuple[int, str], str] = {}
    if previous is not None and previous.uri is None:
        earlier = {(file.size, file.checksum): f"{previous.checkpoint}/{file.key}" for file in previous.files}
    plan = Plan([], [])
    first_by_path: dict[str, LocalFile | TreeEntry] = {}
    # Keys of files that all nodes share are a tree of their own, in which a name cannot be both.
    shared = _Tree()
    for node_rank in sorted(contents):
        for file in contents[node_rank].files:
            if (node_rank, file.path) in stale:
                continue
            first = first_by_path.setdefault(file.path, file)
            if first is not file and first == file:
                continue
            key = key_of_file("files" if first is file and shared.add(file.path) else f"node-{node_rank}", file.path)
            copy_from = earlier.get((file.size, file.checksum))
            plan.files.append(PlannedFile(**vars(file), node_rank=node_rank, key=key, copy_from=copy_from))
        for entry in contents[node_rank].entries:
            if (node_rank, entry.path) in stale:
                continue
            known = first_by_path.setdefault(entry.path, entry)
            if known is entry or known != entry:
                plan.entries.append(StoredEntry(**vars(entry), node_rank=node_rank))
    return plan


def select_content(manifest: Manifest, node_rank: int) -> tuple[list[StoredFile], list[StoredEntry]]:
    """A checkpoint's files and entries as a node gets them: its own variant where nodes differed, else the lowest's.

    Raises:
        CorruptCheckpointError: one would lead out of the directory that it is restored to.
    """
    everything: list[StoredEntry | StoredFile] = [*manifest.entries, *manifest.files]
    for problem in filter(None, map(_refuse, everything)):
        raise CorruptCheckpointError(
            f"checkpoint {manifest.checkpoint_id} is refused: its manifest has {problem} the checkpoint's directory"
        )
    tree = _Tree()
    files: list[StoredFile] = []
    entries: list[StoredEntry] = []
    # Of what cannot be side by side, such as a file and a directory of one name, the first one counts.
    for one in sorted(everything, key=lambda one: (one.node_rank != node_rank, one.node_rank)):
        if isinstance(one, StoredFile):
            if tree.add(one.path):
                files.append(one)
        elif tree.add(one.path, is_directory=one.link_to is None):
            entries.append(one)
    return files, entries


def open_place(root: StorageRoot, manifest: Manifest) -> FilesPlace:
    """Where the files of a checkpoint are: beside its manifest, or at the URI of a linked one."""
    if manifest.uri is not None:
        return FilesPlace(StorageRoot(manifest.uri, manifest.credential), "")
    return FilesPlace(root, checkpoint_key(manifest.job_id, manifest.checkpoint))


class _Tree:
    """Paths that can be in one directory together."""

    def __init__(self) -> None:
        self._leaves: set[str] = set()
        self._directories: set[str] = set()
        self._added: set[str] = set()

    def add(self, path: str, is_directory: bool = False) -> bool:
        """Take a path in, unless it is there already or something else is in its place."""
        above = _directories_above(path)
        is_taken = path in self._directories and not is_directory
        if path in self._added or path in self._leaves or is_taken or not self._leaves.isdisjoint(above):
            return False
        self._added.add(path)
        self._directories.update(above)
        (self._directories if is_directory else self._leaves).add(path)
        return True


def _directories_above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _refuse(one: StoredFile | StoredEntry) -> str | None:
    if isinstance(one, StoredEntry):
        return refuse_entry(one)
    return f"a file '{one.path}', which does not stay inside" if leads_out(one.path) else None


def _identify(one: LocalFile | StoredFile | TreeEntry) -> tuple[object, ...]:
    return (one.link_to,) if isinstance(one, TreeEntry) else (one.size, one.checksum, one.is_executable)


def _identify_all(group: Iterable[LocalFile | StoredFile | TreeEntry]) -> dict[str, tuple[object, ...]]:
    return {one.path: _identify(one) for one in group}


def _find_stale(contents: Mapping[int, Content], restored: Manifest) -> set[tuple[int, str]]:
    """Node and path of what a node was given, and another one has changed or deleted since."""
    present = {
        node_rank: _identify_all(content.files) | _identify_all(content.entries)
        for node_rank, content in contents.items()
    }
    given: dict[int, dict[str, tuple[object, ...]]] = {}
    for node_rank in contents:
        files, entries = select_content(restored, node_rank)
        given[node_rank] = _identify_all(files) | _identify_all(entries)
    untouched = {
        (node_rank, path)
        for node_rank, paths in present.items()
        for path, identity in paths.items()
        if given[node_rank].get(path) == identity
    }
    rewritten = {path for node_rank, paths in present.items() for path in paths if (node_rank, path) not in untouched}
    deleted = {path for node_rank, paths in given.items() for path in paths.keys() - present[node_rank].keys()}
    return {(node_rank, path) for node_rank, path in untouched if path in rewritten | deleted}
