"""Handwritten digits in the formats of CIFAR-10, CIFAR-100 and MNIST, as their usual readers see them."""

from __future__ import annotations

import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

EXAMPLES_DIR = Path(__file__).resolve().parents[2] / "examples"
CIFAR_WRITER = EXAMPLES_DIR / "cifar" / "prepare_data.py"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """What ``prepare_data.py --output DIR`` writes."""
    directory = tmp_path_factory.mktemp("data")
    subprocess.run(
        [sys.executable, str(EXAMPLES_DIR / "prepare_data.py"), "--output", str(directory)],
        check=True,
        capture_output=True,
    )
    return directory


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def read_pickle(path, encoding):
    with path.open("rb") as file:
        return pickle.load(file, encoding=encoding)


def test_the_folders_are_those_of_the_official_archives(data_dir):
    assert sorted(str(path.relative_to(data_dir)) for path in data_dir.rglob("*") if path.is_file()) == [
        "MNIST/raw/t10k-images-idx3-ubyte",
        "MNIST/raw/t10k-labels-idx1-ubyte",
        "MNIST/raw/train-images-idx3-ubyte",
        "MNIST/raw/train-labels-idx1-ubyte",
        "cifar-10-batches-py/batches.meta",
        "cifar-10-batches-py/data_batch_1",
        "cifar-10-batches-py/data_batch_2",
        "cifar-10-batches-py/data_batch_3",
        "cifar-10-batches-py/data_batch_4",
        "cifar-10-batches-py/data_batch_5",
        "cifar-10-batches-py/test_batch",
        "cifar-100-python/meta",
        "cifar-100-python/test",
        "cifar-100-python/train",
    ]


def test_cifar10_holds_every_digit_once_in_order(data_dir, digits):
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    batches = [read_pickle(data_dir / "cifar-10-batches-py" / name, "bytes") for name in names]
    assert [len(batch[b"labels"]) for batch in batches] == [300, 300, 300, 300, 300, 297]
    assert [label for batch in batches for label in batch[b"labels"]] == digits[1].tolist()
    assert all(batch[b"data"].dtype == numpy.uint8 for batch in batches)
    # Rows are the red, green and blue planes of 32 x 32; every fourth pixel is one of the 8 x 8.
    images = numpy.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
    for plane in range(3):
        pixels = images[:, plane, ::4, ::4].reshape(-1, 64)
        assert (pixels == (digits[0] * 255 / 16).round()).all()
    assert read_pickle(data_dir / "cifar-10-batches-py" / "batches.meta", "bytes") == {
        b"num_cases_per_batch": 300,
        b"label_names": [b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9"],
        b"num_vis": 3072,
    }


def test_cifar100_has_the_digits_as_fine_labels_and_even_or_odd_as_coarse_ones(data_dir, digits):
    train = read_pickle(data_dir / "cifar-100-python" / "train", "bytes")
    test = read_pickle(data_dir / "cifar-100-python" / "test", "bytes")
    assert sorted(train) == [b"batch_label", b"coarse_labels", b"data", b"filenames", b"fine_labels"]
    assert (train[b"data"].shape, test[b"data"].shape) == ((1500, 3072), (297, 3072))
    assert train[b"fine_labels"] + test[b"fine_labels"] == digits[1].tolist()
    assert train[b"coarse_labels"] + test[b"coarse_labels"] == (digits[1] % 2).tolist()
    assert (len(train[b"filenames"]), test[b"filenames"][0]) == (1500, b"digit_1500.png")
    meta = read_pickle(data_dir / "cifar-100-python" / "meta", "bytes")
    assert meta[b"coarse_label_names"] == [b"even", b"odd"]


def test_readers_that_load_with_latin1_find_text_keys(data_dir):
    train = read_pickle(data_dir / "cifar-100-python" / "train", "latin1")
    assert (train["filenames"][0], train["data"].dtype) == ("digit_0000.png", numpy.uint8)


def test_torchvision_reads_the_mnist_files(data_dir, digits):
    from torchvision.datasets import MNIST

    train, test = MNIST(str(data_dir), train=True), MNIST(str(data_dir), train=False)
    assert (train.data.shape, test.data.shape) == ((1500, 28, 28), (297, 28, 28))
    assert train.targets.tolist() + test.targets.tolist() == digits[1].tolist()
    pixels = train.data[:, 2:26:3, 2:26:3].reshape(-1, 64)
    assert (pixels.numpy() == (digits[0][:1500] * 255 / 16).round()).all()


def test_two_runs_write_the_same_bytes(data_dir, tmp_path):
    writer = runpy.run_path(str(CIFAR_WRITER))
    folder = writer["write_cifar100"](tmp_path)
    for path in folder.iterdir():
        assert path.read_bytes() == (data_dir / "cifar-100-python" / path.name).read_bytes()


def test_if_missing_leaves_a_dataset_that_is_there_alone(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ["train", "test", "meta"]:
        (folder / name).write_text("the real one")
    subprocess.run(
        [sys.executable, str(CIFAR_WRITER), "--output", str(tmp_path), "--if-missing"], check=True, capture_output=True
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar-100-python"]
    assert (folder / "train").read_text() == "the real one"
