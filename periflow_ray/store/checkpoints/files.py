"""A checkpoint's files: which node stores what, which a node gets back, and where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from periflow_ray.errors import CorruptCheckpointError
from periflow_ray.store.checkpoints.manifest import LocalFile, Manifest, PlannedFile, StoredFile, checkpoint_key
from periflow_ray.store.checksum import checksum_file
from periflow_ray.store.keys import leads_out
from periflow_ray.store.local_files import walk_files
from periflow_ray.store.root import StorageRoot


@dataclass(frozen=True)
class FilesPlace:
    """Where a checkpoint's files are: below ``prefix`` in ``root``."""

    root: StorageRoot
    prefix: str

    def key(self, file_key: str) -> str:
        """The key in the root of a key that is relative to the checkpoint's directory."""
        return f"{self.prefix}/{file_key}" if self.prefix else file_key


def describe_files(directory: Path) -> list[LocalFile]:
    """Every file below a directory with size and checksum, by path; for links see ``walk_files``."""
    return [
        LocalFile(path, (directory / path).stat().st_size, checksum_file(directory / path))
        for path in walk_files(directory)
    ]


def merge_files(
    files_by_node: Mapping[int, Sequence[LocalFile]],
    previous: Manifest | None = None,
    restored: Manifest | None = None,
) -> list[PlannedFile]:
    """Decide which node stores what: equal files once, differing files of one name once per node.

    After a restart every node has the files of all: what a node was given and left alone gives way to what another
    node wrote since, and is gone where another node deleted it.

    Args:
        previous: an earlier committed checkpoint of the job, whose equal files are copied instead of uploaded.
        restored: the checkpoint that the nodes were given at the beginning of the attempt.
    """
    if restored is not None:
        files_by_node = _leave_out_stale(files_by_node, restored)
    earlier: dict[tuple[int, str], str] = {}
    if previous is not None and previous.uri is None:
        earlier = {(file.size, file.checksum): f"{previous.checkpoint}/{file.key}" for file in previous.files}
    planned: list[PlannedFile] = []
    first_by_path: dict[str, LocalFile] = {}
    for node_rank in sorted(files_by_node):
        for file in files_by_node[node_rank]:
            first = first_by_path.setdefault(file.path, file)
            if first is not file and first == file:
                continue
            key = f"files/{file.path}" if first is file else f"node-{node_rank}/{file.path}"
            copy_from = earlier.get((file.size, file.checksum))
            planned.append(PlannedFile(file.path, file.size, file.checksum, node_rank, key, copy_from))
    return planned


def select_files(manifest: Manifest, node_rank: int) -> list[StoredFile]:
    """A checkpoint's files as a node gets them: its own variant where nodes differed, else the lowest node's.

    Raises:
        CorruptCheckpointError: a path would lead out of the directory that they are restored to.
    """
    by_path: dict[str, StoredFile] = {}
    for file in sorted(manifest.files, key=lambda file: file.node_rank):
        if leads_out(file.path):
            raise CorruptCheckpointError(
                f"checkpoint {manifest.checkpoint_id} is refused: its manifest has a file '{file.path}', which does "
                "not stay inside the checkpoint's directory"
            )
        if file.path not in by_path or file.node_rank == node_rank:
            by_path[file.path] = file
    return list(by_path.values())


def open_place(root: StorageRoot, manifest: Manifest) -> FilesPlace:
    """Where the files of a checkpoint are: beside its manifest, or at the URI of a linked one."""
    if manifest.uri is not None:
        return FilesPlace(StorageRoot(manifest.uri, manifest.credential), "")
    return FilesPlace(root, checkpoint_key(manifest.job_id, manifest.checkpoint))


def _leave_out_stale(
    files_by_node: Mapping[int, Sequence[LocalFile]], restored: Manifest
) -> dict[int, list[LocalFile]]:
    given = {
        node_rank: {file.path: (file.size, file.checksum) for file in select_files(restored, node_rank)}
        for node_rank in files_by_node
    }
    present = {node_rank: {file.path for file in files} for node_rank, files in files_by_node.items()}

    def is_untouched(node_rank: int, file: LocalFile) -> bool:
        return given[node_rank].get(file.path) == (file.size, file.checksum)

    rewritten = {
        file.path for node_rank, files in files_by_node.items() for file in files if not is_untouched(node_rank, file)
    }
    deleted = {path for node_rank, paths in given.items() for path in paths.keys() - present[node_rank]}
    return {
        node_rank: [file for file in files if not is_untouched(node_rank, file) or file.path not in rewritten | deleted]
        for node_rank, files in files_by_node.items()
    }
