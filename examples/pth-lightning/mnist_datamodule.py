"""MNIST for Lightning, read from the folder layout of torchvision."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST

from periflow_ray.resumable import ResumableDataLoader


class MnistDataModule(pl.LightningDataModule):
    """Training and validation images of this rank.

    Args:
        data_path: folder that holds ``MNIST/raw``.
        batch_size: images in a batch of one rank.
        num_workers: loading processes of one rank.
    """

    def __init__(self, data_path: Path, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        self.data_path = data_path
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed

    def setup(self, stage: str) -> None:
        try:
            self.train_images = MNIST(str(self.data_path), train=True, transform=transforms.ToTensor())
            self.test_images = MNIST(str(self.data_path), train=False, transform=transforms.ToTensor())
        except RuntimeError:
            raise SystemExit(
                f"--data-path {self.data_path}: no MNIST/raw with MNIST's files there. Download them with torchvision, "
                f"or write a small stand-in with: python prepare_data.py --output {self.data_path}"
            ) from None

    def train_dataloader(self) -> ResumableDataLoader:
        # Each rank's share of them, in an order that goes on after a restart.
        return ResumableDataLoader(
            self.train_images, self.batch_size, seed=self.seed, drop_last=True, num_workers=self.num_workers
        )

    def val_dataloader(self) -> DataLoader:
        # Lightning shares it out to the ranks.
        return DataLoader(self.test_images, batch_size=self.batch_size, num_workers=self.num_workers)
