"""``periflow_ray.dataset``: a dataset in a Python script or a function job, as a directory or as a Ray dataset."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from periflow_ray.errors import UsageError
from periflow_ray.names import HUGGINGFACE_PREFIX
from periflow_ray.settings import choose_root
from periflow_ray.store.datasets import list_dataset_files, locate_dataset, read_dataset
from periflow_ray.store.datasets.huggingface import WHOLE, Part
from periflow_ray.store.datasets.local import LocalDataset, open_dataset
from periflow_ray.store.datasets.packs import open_packed
from periflow_ray.store.root import StorageRoot

if TYPE_CHECKING:
    import ray.data

_READERS = {
    ".parquet": "read_parquet",
    ".csv": "read_csv",
    ".json": "read_json",
    ".jsonl": "read_json",
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"), "read_images"),
}
# Files that scripts of this process read stay in the cache as long as it lives.
_opened: dict[tuple[str, str, Part], LocalDataset] = {}


@dataclass(frozen=True)
class DatasetHandle:
    """A dataset by name; travels to other processes, where it opens the dataset anew."""

    name: str
    root: StorageRoot
    part: Part = WHOLE

    def local_path(self) -> Path:
        """The directory with the dataset's files on this machine, which must not be written to.

        The files' own directory where that is local, else a copy in the node's cache, fetched by the first process that
        asks. A ``huggingface:`` dataset is what ``datasets.load_from_disk`` reads.

        Raises:
            NotFoundError: the files are not where the dataset says.
            StorageError: they cannot be fetched.
        """
        place = (self.root.uri, self.name, self.part)
        if place not in _opened:
            _opened[place] = open_dataset(self.root, self.name, self.part)
        return _opened[place].path

    def ray_dataset(self, split: str | None = None) -> ray.data.Dataset:
        """The dataset for Ray Data, read by Ray's workers from where it is: Parquet, CSV, JSON or image files.

        Files whose name begins with ``.`` or ``_``, and those of other kinds, are left out.

        Args:
            split: which one of a ``huggingface:`` dataset; may be left out when there is only one.
        Raises:
            UsageError: there are no files of these kinds, or of several, or the split does not exist.
        """
        if self.name.startswith(HUGGINGFACE_PREFIX):
            return _read_huggingface(self.name, self.local_path(), split)
        if split is not None:
            raise UsageError(f"dataset '{self.name}' has no splits; only a huggingface: dataset has. Leave split out.")
        dataset = read_dataset(self.root, self.name)
        place, prefix = locate_dataset(self.root, dataset)
        files = {file.path: file for file in list_dataset_files(self.root, dataset)}
        reader, paths = _choose_reader(self.name, list(files))
        import ray.data

        if any(files[path].pack is not None for path in paths):
            filesystem = open_packed(place, prefix, [files[path] for path in paths])
        else:
            from periflow_ray.store.arrow import open_arrow_filesystem

            filesystem = open_arrow_filesystem(place)
            keys = [path if dataset.is_linked else f"{prefix}/{files[path].stored_key}" for path in paths]
            paths = [place.path_of(key) for key in keys]
        return getattr(ray.data, reader)(paths, filesystem=filesystem)


def dataset(
    name: str,
    storage: str | None = None,
    *,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> DatasetHandle:
    """A dataset by its name.

    Args:
        name: a dataset's, or ``huggingface:<dataset>`` for a public Hugging Face dataset.
        storage: storage root; default is the job's in a job, else that of the command line.
        config, split, revision: configuration, split, and branch, tag or commit of a ``huggingface:`` dataset, as
            ``datasets.load_dataset`` takes them; default are its default one, all, and the newest.
    Raises:
        NotFoundError: there is none of that name.
        UsageError: the name is none, or parts are given of a dataset that has none.
    """
    root = choose_root(storage).root
    if name == HUGGINGFACE_PREFIX:
        raise UsageError("'huggingface:' names no dataset; it must be huggingface:<dataset>.")
    part = Part(config, split, revision)
    if not name.startswith(HUGGINGFACE_PREFIX):
        if part != WHOLE:
            raise UsageError(f"dataset '{name}' has no config, split or revision; only a huggingface: dataset has.")
        read_dataset(root, name)
    return DatasetHandle(name, root, part)


def _choose_reader(name: str, paths: list[str]) -> tuple[str, list[str]]:
    by_reader: dict[str, list[str]] = {}
    for path in paths:
        is_hidden = any(part.startswith((".", "_")) for part in path.split("/"))
        reader = _READERS.get(posixpath.splitext(path)[1].lower())
        if reader is not None and not is_hidden:
            by_reader.setdefault(reader, []).append(path)
    if not by_reader:
        raise UsageError(
            f"dataset '{name}' has no files that Ray Data reads here: {', '.join(_READERS)}. "
            f"Read them yourself from periflow_ray.dataset('{name}').local_path()."
        )
    if len(by_reader) > 1:
        counts = ", ".join(f"{len(found)} for {reader}" for reader, found in sorted(by_reader.items()))
        raise UsageError(
            f"dataset '{name}' has files of several kinds: {counts}. Read those you mean with ray.data from "
            f"periflow_ray.dataset('{name}').local_path()."
        )
    return next(iter(by_reader.items()))


def _read_huggingface(name: str, directory: Path, split: str | None) -> ray.data.Dataset:
    """Read what ``save_to_disk`` wrote: a directory of Arrow files, or one such directory for each split."""
    splits = sorted({path.parent.relative_to(directory).as_posix() for path in directory.rglob("*.arrow")})
    if split is None and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        given = "has several splits" if split is None else f"has no split '{split}'"
        raise UsageError(f"dataset '{name}' {given}. Choose one: split=... of {', '.join(splits)}")
    import ray.data

    return ray.data.from_arrow(list(_open_tables(directory / split)))


def _open_tables(directory: Path) -> Iterator[Any]:
    import pyarrow

    for path in sorted(directory.glob("*.arrow")):
        with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as reader:
            yield reader.read_all()
