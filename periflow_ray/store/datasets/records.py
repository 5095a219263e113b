"""Datasets: a name for files that jobs read, kept in the storage root or linked where they are.

datasets/<name>/dataset.json      written last: the dataset exists when it does
datasets/<name>/files.json        of an uploaded one: path, size and checksum of every file
datasets/<name>/entries.json      of an uploaded one: its directories and symbolic links, if there are any
datasets/<name>/files/<path>      of an uploaded one: the files
datasets/<name>/uploading.json    while it is uploaded, and after an upload that was cut short: what it was to be

Long because every one of these is written and read here, in an order that is safe at each point.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from periflow_ray.errors import NotFoundError, StorageError, UsageError
from periflow_ray.store.datasets.files import (
    DatasetFile,
    describe_source,
    dump_files,
    identify_content,
    list_versions,
    name_keys,
    refuse_outsiders,
)
from periflow_ray.store.datasets.packs import plan_packs
from periflow_ray.store.datasets.uploading import JOURNAL, end_upload, seal_files, send_files, unseal_files
from periflow_ray.store.documents import (
    OnUnreadable,
    describe_key,
    parse_entries,
    read_document,
    read_each,
    write_document,
)
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.trees import TreeEntry

UploadProgress = Callable[[str, int, int], None]
"""Called with ``reading`` or ``uploading``, the number of bytes done and of all bytes, from any thread."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NUM_WORKERS = 16


@dataclass(frozen=True)
class Dataset:
    """A named dataset.

    Attributes:
        uri: where its files are: below the storage root, a path, or a bucket.
        region: of a linked bucket, as the user named it.
        credential: name of the stored credential that a linked bucket is opened with; None for the cloud's usual chain.
        num_files: of an uploaded dataset; None for a linked one, whose files may change. So are the next two.
        size_bytes: of all files together.
        content_id: equal when all files are.
        has_entries: whether an uploaded dataset has directories or links.
    """

    name: str
    uri: str
    created_unix_s: float
    is_linked: bool
    metadata: dict[str, Any] = field(default_factory=dict)
    region: str | None = None
    credential: str | None = None
    num_files: int | None = None
    size_bytes: int | None = None
    content_id: str | None = None
    has_entries: bool = False


def upload_dataset(
    root: StorageRoot,
    name: str,
    source: Path,
    *,
    contents_only: bool,
    metadata: dict[str, Any] | None = None,
    on_progress: UploadProgress | None = None,
    on_skipped: Callable[[str, str], None] = lambda path, reason: None,
) -> Dataset:
    """Copy a directory or file into the storage root under a name; an upload that was cut short goes on.

    Files that the earlier upload stored and that have not changed since are not sent again. In a storage root that is a
    directory the stored files are made read-only, because jobs read them where they are.

    Args:
        contents_only: put the directory's contents at the top, not the directory itself (a trailing ``/``).
        on_skipped: see ``walk_tree``.
    Raises:
        UsageError: the name is taken or cannot be used, the source cannot be a dataset, or it changed meanwhile.
        StorageError: the storage root failed, or somebody else uploads a dataset of this name.
    """
    _check_new_name(root, name)
    progress = on_progress or (lambda phase, num_bytes, total_bytes: None)
    described, entries = describe_source(
        source, contents_only, lambda done, total: progress("reading", done, total), on_skipped
    )
    if not root.is_local:
        described = plan_packs(name_keys(described))
    files = tuple(one.file for one in described)
    upload_id = send_files(root, _key(name), described, lambda done, total: progress("uploading", done, total))
    _write_lists(root, name, files, entries)
    end_upload(root, _key(name), upload_id, files, entries)
    dataset = Dataset(
        name=name,
        uri=_uploaded_uri(root, name),
        created_unix_s=time.time(),
        is_linked=False,
        metadata=metadata or {},
        num_files=len(files),
        size_bytes=sum(file.size for file in files),
        content_id=identify_content(files),
        has_entries=bool(entries),
    )
    _write_dataset(root, dataset)
    root.delete(_key(name, JOURNAL))
    return dataset


def link_dataset(
    root: StorageRoot,
    name: str,
    uri: str,
    metadata: dict[str, Any] | None = None,
    *,
    region: str | None = None,
    credential: str | None = None,
) -> Dataset:
    """Give files that stay where they are a name.

    Args:
        credential: name of a stored credential; its values stay where they are stored.
    Raises:
        UsageError: the name is taken or cannot be used, or the URI is that of a single file.
        StorageError: the URI cannot be opened.
        NotFoundError: there is nothing at the URI.
    """
    _check_new_name(root, name)
    linked = StorageRoot(uri, credential=credential)
    if not linked.exists(""):
        raise NotFoundError(f"there is nothing at '{uri}'")
    if linked.is_local and linked.local_path("").is_file():
        raise UsageError(f"'{uri}' is a file. Link the directory that it is in, or upload it.")
    dataset = Dataset(name, linked.uri, time.time(), True, metadata or {}, region, credential)
    _write_dataset(root, dataset)
    return dataset


def read_dataset(root: StorageRoot, name: str) -> Dataset:
    """One dataset.

    Raises:
        NotFoundError: there is none of that name.
        DocumentError: its record cannot be read.
    """
    try:
        dataset = read_document(root, _key(name, "dataset.json"), Dataset)
    except NotFoundError:
        raise NotFoundError(
            f"dataset '{name}' does not exist in storage root '{root.uri}'. Make it known: "
            f"periflow-ray datastore upload -n {name} -p DIR"
        ) from None
    # A storage root may be mounted elsewhere than where the dataset was uploaded.
    return dataset if dataset.is_linked else dataclasses.replace(dataset, uri=_uploaded_uri(root, name))


def list_datasets(root: StorageRoot, on_unreadable: OnUnreadable | None = None) -> list[Dataset]:
    """All datasets by name; one whose upload was cut short is left out.

    Args:
        on_unreadable: told of each dataset whose record cannot be read, which is left out then.
    Raises:
        DocumentError: there is such a dataset, and nobody to be told of it.
    """
    return read_each(lambda name: read_dataset(root, name), root.list_names("datasets"), on_unreadable)


def list_unfinished_uploads(root: StorageRoot) -> list[str]:
    """Names of the datasets whose upload goes on or was cut short, sorted."""
    names = root.list_names("datasets")
    return [name for name in names if not root.exists(_key(name, "dataset.json")) and root.exists(_key(name, JOURNAL))]


def list_dataset_files(root: StorageRoot, dataset: Dataset) -> tuple[DatasetFile, ...]:
    """The dataset's files by path, from its manifest or by a listing: never a request per file.

    Raises:
        StorageError: the manifest is not the dataset's.
    """
    if dataset.is_linked:
        return list_versions(StorageRoot(dataset.uri, credential=dataset.credential))
    key = _key(dataset.name, "files.json")
    files = parse_entries(DatasetFile, root.read_bytes(key), describe_key(root, key))
    if identify_content(files) != dataset.content_id:
        raise StorageError(
            f"dataset '{dataset.name}' in storage root '{root.uri}' is damaged: files.json is not the list of files "
            "that was uploaded. Delete the dataset and upload it again."
        )
    refuse_outsiders(files, (), _describe_place(root, dataset))
    return files


def list_dataset_entries(root: StorageRoot, dataset: Dataset) -> tuple[TreeEntry, ...]:
    """The directories and symbolic links of an uploaded dataset; a linked one has what is at its URI.

    Raises:
        StorageError: one would lie elsewhere than in the dataset.
    """
    if not dataset.has_entries:
        return ()
    key = _key(dataset.name, "entries.json")
    entries = parse_entries(TreeEntry, root.read_bytes(key), describe_key(root, key))
    refuse_outsiders((), entries, _describe_place(root, dataset))
    return entries


def locate_dataset(root: StorageRoot, dataset: Dataset) -> tuple[StorageRoot, str]:
    """The storage root that has the dataset's files, and the key below which each has its ``stored_key``.

    The key is empty for a linked dataset, whose files have their paths for keys.
    """
    if dataset.is_linked:
        return StorageRoot(dataset.uri, credential=dataset.credential), ""
    return root, _key(dataset.name)


def edit_dataset(
    root: StorageRoot,
    name: str,
    *,
    new_name: str | None = None,
    metadata: dict[str, Any] | None = None,
    region: str | None = None,
    credential: str | None = None,
) -> Dataset:
    """Change what is given, leave the rest; uploaded files are copied inside the storage root to their new name.

    Raises:
        NotFoundError: there is none of that name.
        UsageError: the new name is taken or cannot be used, or the dataset is uploaded and has no region or credential.
    """
    dataset = read_dataset(root, name)
    if not dataset.is_linked and not (region is None and credential is None):
        raise UsageError(f"dataset '{name}' is kept in the storage root; only a linked one has a region or credential.")
    changed = dataclasses.replace(
        dataset,
        metadata=dataset.metadata if metadata is None else metadata,
        region=region or dataset.region,
        credential=credential or dataset.credential,
    )
    if credential is not None and not StorageRoot(dataset.uri, credential=credential).exists(""):
        raise NotFoundError(f"with credential '{credential}' there is nothing at '{dataset.uri}'")
    if new_name is None or new_name == name:
        _write_dataset(root, changed)
        return changed
    _check_new_name(root, new_name)
    if not dataset.is_linked:
        _copy_files(root, dataset, new_name)
        changed = dataclasses.replace(changed, uri=_uploaded_uri(root, new_name))
    changed = dataclasses.replace(changed, name=new_name)
    _write_dataset(root, changed)
    _delete_keys(root, name)
    return changed


def delete_dataset(root: StorageRoot, name: str) -> None:
    """Forget a dataset, or an upload that was cut short; files go only if they were uploaded, linked ones stay.

    Raises:
        NotFoundError: there is none of that name.
    """
    if name not in list_unfinished_uploads(root):
        read_dataset(root, name)
    _delete_keys(root, name)


def _copy_files(root: StorageRoot, dataset: Dataset, new_name: str) -> None:
    files, entries = list_dataset_files(root, dataset), list_dataset_entries(root, dataset)
    _delete_keys(root, new_name)
    keys = {file.stored_key for file in files}
    with ThreadPoolExecutor(_NUM_WORKERS) as pool:
        list(pool.map(lambda key: root.copy_file(_key(dataset.name, key), _key(new_name, key)), keys))
    seal_files(root, _key(new_name), files, entries)
    _write_lists(root, new_name, files, entries)


def _write_lists(root: StorageRoot, name: str, files: Sequence[DatasetFile], entries: Sequence[TreeEntry]) -> None:
    root.write_json(_key(name, "files.json"), dump_files(files))
    if entries:
        root.write_json(_key(name, "entries.json"), [vars(entry) for entry in entries])


def _describe_place(root: StorageRoot, dataset: Dataset) -> str:
    return f"dataset '{dataset.name}' in storage root '{root.uri}'"


def _delete_keys(root: StorageRoot, name: str) -> None:
    # First of all, so that nobody sees a dataset whose files go.
    root.delete(_key(name, "dataset.json"))
    unseal_files(root, _key(name))
    root.delete(_key(name))


def _write_dataset(root: StorageRoot, dataset: Dataset) -> None:
    write_document(root, _key(dataset.name, "dataset.json"), dataset)


def _check_new_name(root: StorageRoot, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"dataset name {name!r} cannot be used: letters, digits, '.', '_' and '-', starting with a letter or digit."
        )
    if root.exists(_key(name, "dataset.json")):
        raise UsageError(
            f"dataset '{name}' already exists. Delete it first (periflow-ray datastore delete {name}) or choose "
            "another name."
        )


def _uploaded_uri(root: StorageRoot, name: str) -> str:
    return f"{root.uri}/{_key(name, 'files')}"


def _key(name: str, rest: str = "") -> str:
    return f"datasets/{name}/{rest}" if rest else f"datasets/{name}"
