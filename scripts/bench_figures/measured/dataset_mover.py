"""Moves a dataset of small files: ``dataset_mover.py STORAGE_URI SOURCE_DIR WORK_DIR``.

Asked ``upload`` or ``fetch`` it does that with the dataset as a whole, asked ``put`` or ``get`` and a number with so
many of its files through fsspec, one after the other. It answers with files per second.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import fsspec

from periflow_ray.store.datasets import delete_dataset, upload_dataset
from periflow_ray.store.datasets.cache import DatasetCache
from periflow_ray.store.datasets.local import open_dataset
from periflow_ray.store.root import StorageRoot

NAME = "small-files"


def main() -> None:
    storage_uri, source_dir, work_dir = sys.argv[1:]
    mover = Mover(storage_uri, Path(source_dir), Path(work_dir))
    print("ready", flush=True)
    for question in sys.stdin:
        command, *arguments = question.split()
        print(getattr(mover, command)(*map(int, arguments)), flush=True)


class Mover:
    """Our side and the baseline's, in one process so that both have everything imported."""

    def __init__(self, storage_uri: str, source_dir: Path, work_dir: Path) -> None:
        self._root = StorageRoot(storage_uri)
        self._source_dir = source_dir
        self._work_dir = work_dir
        self._files = sorted(path.relative_to(source_dir) for path in source_dir.rglob("*") if path.is_file())
        self._fs, base = fsspec.core.url_to_fs(storage_uri)
        self._base = f"{base}/one-by-one"

    def upload(self) -> float:
        began_s = time.monotonic()
        upload_dataset(self._root, NAME, self._source_dir, contents_only=True)
        return len(self._files) / (time.monotonic() - began_s)

    def fetch(self) -> float:
        """From nothing on this machine to a complete directory; both are deleted afterwards."""
        began_s = time.monotonic()
        dataset = open_dataset(self._root, NAME, cache=DatasetCache(self._work_dir / "cache"))
        seconds = time.monotonic() - began_s
        found = sorted(path.relative_to(dataset.path) for path in dataset.path.rglob("*") if path.is_file())
        assert found == self._files
        dataset.close()
        shutil.rmtree(self._work_dir / "cache")
        delete_dataset(self._root, NAME)
        return len(self._files) / seconds

    def put(self, num_files: int) -> float:
        began_s = time.monotonic()
        for file in self._files[:num_files]:
            self._fs.put_file(str(self._source_dir / file), f"{self._base}/{file}")
        return num_files / (time.monotonic() - began_s)

    def get(self, num_files: int) -> float:
        target_dir = self._work_dir / "one-by-one"
        began_s = time.monotonic()
        for file in self._files[:num_files]:
            (target_dir / file).parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(f"{self._base}/{file}", str(target_dir / file))
        seconds = time.monotonic() - began_s
        shutil.rmtree(target_dir)
        self._fs.rm(self._base, recursive=True)
        return num_files / seconds


if __name__ == "__main__":
    main()
