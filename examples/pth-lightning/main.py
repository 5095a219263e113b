"""Train an autoencoder on MNIST with PyTorch Lightning.

    python main.py --data-path data --checkpoint-dir ckpt --num-epochs 3

Starts again exactly where the newest checkpoint in ``--checkpoint-dir`` ended.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from mnist_datamodule import MnistDataModule
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from periflow_ray.lightning import PeriFlowCallback, PeriFlowTrainer, latest_checkpoint
from periflow_ray.resumable import gather_rng_states, restore_rng_states


def main() -> None:
    args = parse_args()
    pl.seed_everything(args.seed)
    trainer = PeriFlowTrainer(
        max_epochs=args.num_epochs,
        callbacks=[
            PeriFlowCallback(),
            ModelCheckpoint(args.checkpoint_dir, every_n_train_steps=args.save_interval, save_on_train_epoch_end=True),
            RngStates(),
        ],
        accelerator="auto",
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(
        LitAutoEncoder(args.learning_rate),
        datamodule=MnistDataModule(args.data_path, args.batch_size, args.num_dataloader_workers, args.seed),
        ckpt_path=latest_checkpoint(args.checkpoint_dir),
    )
    if trainer.is_global_zero and "val_loss" in trainer.callback_metrics:
        print(f"finished at step {trainer.global_step}: val_loss {trainer.callback_metrics['val_loss']:.4f}")


class LitAutoEncoder(pl.LightningModule):
    """Squeezes an image into three numbers and draws it again from them."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.encoder = nn.Sequential(nn.Linear(28 * 28, 64), nn.ReLU(), nn.Linear(64, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 28 * 28))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(images))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self._reconstruction_loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        self.log("val_loss", self._reconstruction_loss(batch), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        val_loss = self.trainer.callback_metrics["val_loss"]
        # The module's print() speaks on rank 0 alone.
        self.print(f"epoch {self.current_epoch}: val_loss {val_loss:.4f}", flush=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def _reconstruction_loss(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        images, _ = batch
        pixels = images.flatten(start_dim=1)
        return nn.functional.mse_loss(self(pixels), pixels)


class RngStates(pl.Callback):
    """Keeps the random generators' states of all ranks in the checkpoint, which Lightning does not."""

    def __init__(self) -> None:
        self._states_to_restore: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"rng": gather_rng_states()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._states_to_restore = state_dict["rng"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Only now: setting up the training has drawn random numbers since the checkpoint was read.
        if self._states_to_restore is not None:
            restore_rng_states(self._states_to_restore)
            self._states_to_restore = None


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", type=Path, default=Path("data"), help="folder that holds MNIST/raw")
    parser.add_argument("--checkpoint-dir", type=Path, required=True)
    parser.add_argument("--num-epochs", type=int, default=10)
    parser.add_argument("--save-interval", type=int, help="steps; without it, at the end of every epoch")
    parser.add_argument("--batch-size", type=int, default=32, help="images in a step, of each process")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--num-dataloader-workers", type=int, default=0, help="processes per training process")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
