"""A job from Python, without a template: train on handwritten digits with any Lightning ``Trainer``.

    python main_lightning.py --num-devices 2

``prepare_trainer`` sets the Trainer's strategy, devices and plugins for the cluster.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import periflow_ray


def train_loop_per_worker(config: dict[str, Any]) -> None:
    # Imported here, because this function travels to the workers: what it uses must be inside it.
    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.callbacks import ModelCheckpoint
    from sklearn.datasets import load_digits
    from torch.utils.data import DataLoader, TensorDataset

    from periflow_ray.lightning import prepare_trainer

    class DigitClassifier(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            pixels, digits = batch
            logits = self.network(pixels)
            self.log("train_accuracy", (logits.argmax(dim=1) == digits).float().mean())
            return torch.nn.functional.cross_entropy(logits, digits)

        def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
            pixels, digits = batch
            accuracy = (self.network(pixels).argmax(dim=1) == digits).float().mean()
            self.log("val_accuracy", accuracy, sync_dist=True)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=config["learning_rate"])

    pl.seed_everything(config["seed"])
    pixels, digits = load_digits(return_X_y=True)
    dataset = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits))
    train_part, val_part = torch.utils.data.random_split(
        dataset, [1500, 297], generator=torch.Generator().manual_seed(config["seed"])
    )
    trainer = prepare_trainer(
        pl.Trainer(
            max_epochs=config["num_epochs"],
            callbacks=[ModelCheckpoint(os.environ["CKPT_DIR"], save_on_train_epoch_end=True)],
            logger=False,
            enable_progress_bar=False,
        )
    )
    # Resumes from the newest checkpoint by itself when the job was restarted.
    trainer.fit(
        DigitClassifier(),
        DataLoader(train_part, config["batch_size"], shuffle=True, drop_last=True),
        DataLoader(val_part, config["batch_size"]),
    )
    if trainer.is_global_zero:
        print(f"val_accuracy {trainer.callback_metrics['val_accuracy']:.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-devices", type=int, default=2)
    parser.add_argument("--num-epochs", type=int, default=5)
    args = parser.parse_args()
    trainer = periflow_ray.TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"num_epochs": args.num_epochs, "batch_size": 32, "learning_rate": 1e-2, "seed": 0},
        num_devices=args.num_devices,
        name="digits-lightning",
        max_failures=3,
    )
    result = trainer.fit()
    print(f"checkpoint: {result.checkpoint}")


if __name__ == "__main__":
    main()
