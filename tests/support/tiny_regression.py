"""A Lightning module that trains in no time, for the tests of the Lightning integration."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "logger": False,
}


def make_loader(num_batches: int) -> DataLoader[Any]:
    """Batches of two rows; the rows of batch k are k, so that a batch can be told from another."""
    rows = torch.arange(num_batches, dtype=torch.float32).repeat_interleave(2).unsqueeze(1)
    return DataLoader(TensorDataset(rows), batch_size=2)


class TinyRegression(pl.LightningModule):
    """``training_step`` returns batch k's loss as ``make_outputs`` wraps it: the loss is exactly k + weight * 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        rows = batch[0]
        self.seen.append(int(rows.flatten()[0]))
        return self.make_outputs(rows.mean() + 0 * self.weight.sum())

    def make_outputs(self, loss: torch.Tensor) -> Any:
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)
