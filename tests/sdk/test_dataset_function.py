from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import periflow_ray
from periflow_ray.errors import NotFoundError, UsageError
from periflow_ray.store.datasets import upload_dataset
from periflow_ray.store.datasets.huggingface import Part
from periflow_ray.store.root import StorageRoot

# In a process of its own, with which Ray and all that it changes in the environment end.
READ_WITH_RAY = """
import io, sys
import pyarrow, pyarrow.csv, pyarrow.parquet
from PIL import Image
import periflow_ray
import periflow_ray.dataset_handle
import ray
from pathlib import Path
from periflow_ray.store.datasets import upload_dataset
from periflow_ray.store.datasets.huggingface import Part
from periflow_ray.store.root import StorageRoot

scratch = Path(sys.argv[1])
root = StorageRoot(str(scratch / "storage"))
table = pyarrow.table({"label": [3, 1, 2]})
for name in ("parquet", "csv", "json", "images"):
    (scratch / name / "train").mkdir(parents=True)
pyarrow.parquet.write_table(table, scratch / "parquet" / "train" / "part-0.parquet")
(scratch / "parquet" / "train" / "_SUCCESS").touch()
(scratch / "parquet" / "README.md").write_text("about")
pyarrow.csv.write_csv(table, scratch / "csv" / "train" / "part-0.csv")
(scratch / "json" / "train" / "part-0.jsonl").write_text("".join('{"label": %d}\\n' % n for n in (3, 1, 2)))
Image.new("RGB", (4, 2)).save(scratch / "images" / "train" / "cat.png")
for name in ("parquet", "csv", "json", "images"):
    upload_dataset(root, name, scratch / name, contents_only=True)
ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
for name in ("parquet", "csv", "json"):
    rows = periflow_ray.dataset(name, storage=root.uri).ray_dataset().take_all()
    assert sorted(row["label"] for row in rows) == [1, 2, 3], rows
(row,) = periflow_ray.dataset("images", storage=root.uri).ray_dataset().take_all()
assert row["image"].shape == (2, 4, 3), row
# What datasets.DatasetDict.save_to_disk writes.
saved = scratch / "saved"
for split in ("test", "train"):
    (saved / split).mkdir(parents=True)
    with pyarrow.OSFile(str(saved / split / "data-00000-of-00001.arrow"), "wb") as sink:
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
rows = periflow_ray.dataset_handle._read_huggingface("huggingface:x", saved, "train").take_all()
assert sorted(row["label"] for row in rows) == [1, 2, 3], rows
print("all read")
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StorageRoot:
    """The storage root that the environment names, as in a job."""
    root = StorageRoot(str(tmp_path / "storage"))
    monkeypatch.setenv("PERIFLOW_STORAGE", root.uri)
    return root


def upload(root: StorageRoot, name: str, directory: Path, paths: list[str]) -> None:
    for path in paths:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(path)
    upload_dataset(root, name, directory, contents_only=True)


def test_a_dataset_is_a_directory_of_this_machine(root, tmp_path):
    upload(root, "cifar", tmp_path / "cifar", ["train/0.bin", "labels.txt"])
    path = periflow_ray.dataset("cifar").local_path()
    assert (path / "train" / "0.bin").read_text() == "train/0.bin"


def test_the_storage_root_can_be_given(root, tmp_path):
    other = StorageRoot(str(tmp_path / "other"))
    upload(other, "cifar", tmp_path / "cifar", ["labels.txt"])
    assert (periflow_ray.dataset("cifar", storage=other.uri).local_path() / "labels.txt").is_file()
    with pytest.raises(NotFoundError, match="dataset 'cifar' does not exist in storage root"):
        periflow_ray.dataset("cifar")


def test_a_handle_travels_to_another_process(root, tmp_path):
    upload(root, "cifar", tmp_path / "cifar", ["labels.txt"])
    handle = periflow_ray.dataset("cifar")
    handle.local_path()
    assert (pickle.loads(pickle.dumps(handle)).local_path() / "labels.txt").is_file()


def test_the_function_is_still_one_when_its_module_is_imported():
    import periflow_ray.dataset_handle

    assert periflow_ray.dataset is periflow_ray.dataset_handle.dataset


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (
            ["notes.txt", "_temporary/0.parquet", ".hidden.csv"],
            "dataset 'pets' has no files that Ray Data reads here: .parquet, .csv, .json, .jsonl, .png, .jpg, .jpeg, "
            ".bmp, .gif, .tif, .tiff, .webp. Read them yourself from periflow_ray.dataset('pets').local_path().",
        ),
        (
            ["a.png", "b.JPG", "labels.csv"],
            "dataset 'pets' has files of several kinds: 1 for read_csv, 2 for read_images. Read those you mean with "
            "ray.data from periflow_ray.dataset('pets').local_path().",
        ),
    ],
)
def test_files_that_ray_data_cannot_be_asked_for_are_an_error(root, tmp_path, paths, message):
    upload(root, "pets", tmp_path / "pets", paths)
    with pytest.raises(UsageError) as caught:
        periflow_ray.dataset("pets").ray_dataset()
    assert str(caught.value) == message


def test_only_a_hugging_face_dataset_has_splits(root, tmp_path):
    upload(root, "pets", tmp_path / "pets", ["a.csv"])
    with pytest.raises(UsageError, match="only a huggingface: dataset has"):
        periflow_ray.dataset("pets").ray_dataset(split="train")
    with pytest.raises(UsageError, match="must be huggingface:<dataset>"):
        periflow_ray.dataset("huggingface:")


def test_only_a_hugging_face_dataset_has_parts(root, tmp_path):
    upload(root, "pets", tmp_path / "pets", ["a.csv"])
    with pytest.raises(UsageError, match="'pets' has no config, split or revision"):
        periflow_ray.dataset("pets", revision="v1")
    handle = periflow_ray.dataset("huggingface:wiki", config="raw", split="train")
    assert pickle.loads(pickle.dumps(handle)).part == Part("raw", "train")


@pytest.mark.ray
def test_ray_data_reads_parquet_csv_json_images_and_saved_splits(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", READ_WITH_RAY, str(tmp_path)],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (done.returncode, done.stdout.strip().splitlines()[-1:]) == (0, ["all read"]), done.stderr
