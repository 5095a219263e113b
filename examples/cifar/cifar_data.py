"""CIFAR-10 and CIFAR-100 from their pickle files, as they come out of the official archives."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2 as transforms

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
CHANNEL_MEANS = (0.49, 0.48, 0.45)
CHANNEL_STDS = (0.25, 0.24, 0.26)


@dataclass(frozen=True)
class Cifar:
    """Images of N x 3 x 32 x 32 bytes with their N labels, for training and for testing."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    class_names: list[str]


def read_cifar(data_path: Path, dataset: str) -> Cifar:
    """Read ``cifar10`` or ``cifar100`` from ``data_path``, or from the archive's folder below it.

    Raises:
        SystemExit: the files are not there; the message says how to get them.
    """
    nested = data_path / FOLDERS[dataset]
    folder = nested if nested.is_dir() else data_path
    if dataset == "cifar10":
        train_names, test_name, meta_name = [f"data_batch_{i}" for i in range(1, 6)], "test_batch", "batches.meta"
        labels_key, names_key = "labels", "label_names"
    else:
        train_names, test_name, meta_name = ["train"], "test", "meta"
        labels_key, names_key = "fine_labels", "fine_label_names"
    missing = [name for name in [*train_names, test_name, meta_name] if not (folder / name).is_file()]
    if missing:
        raise SystemExit(
            f"--data-path {data_path}: no {dataset} there ({', '.join(missing)} not found). Unpack the official "
            f"archive into it, or write a small stand-in with: python prepare_data.py --output {data_path}"
        )
    train = [_read_pickle(folder / name) for name in train_names]
    test = _read_pickle(folder / test_name)
    return Cifar(
        train_images=torch.cat([_as_images(batch["data"]) for batch in train]),
        train_labels=torch.tensor([label for batch in train for label in batch[labels_key]]),
        test_images=_as_images(test["data"]),
        test_labels=torch.tensor(test[labels_key]),
        class_names=[name.decode() for name in _read_pickle(folder / meta_name)[names_key]],
    )


class AugmentedImages(Dataset):
    """Training images, cropped and flipped at random."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images = images
        self.labels = labels
        self.augment = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.augment(self.images[index]), self.labels[index]


normalize = transforms.Compose(
    [transforms.ToDtype(torch.float32, scale=True), transforms.Normalize(CHANNEL_MEANS, CHANNEL_STDS)]
)
"""From bytes to the numbers that the network sees; works on whole batches, on the device where they are."""


def _read_pickle(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        # The official files were written by Python 2: with "bytes" their strings arrive as bytes.
        content = pickle.load(file, encoding="bytes")
    return {key.decode(): value for key, value in content.items()}


def _as_images(rows: numpy.ndarray) -> torch.Tensor:
    return torch.from_numpy(rows.reshape(-1, 3, 32, 32).copy())
