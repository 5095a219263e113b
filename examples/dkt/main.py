"""Deep knowledge tracing with PyTorch Lightning: will this student answer the next question rightly?

    python main.py --checkpoint-dir ckpt

Stops early when validation no longer improves; starts again exactly where the newest checkpoint ended.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from model import KnowledgeTracer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from students import make_students
from torch.utils.data import DataLoader, Subset

from periflow_ray.lightning import PeriFlowCallback, PeriFlowTrainer, latest_checkpoint
from periflow_ray.resumable import ResumableDataLoader, gather_rng_states, restore_rng_states


def main() -> None:
    args = parse_args()
    pl.seed_everything(args.seed)
    trainer = PeriFlowTrainer(
        max_epochs=args.num_epochs,
        gradient_clip_val=1.0,
        accumulate_grad_batches=args.accumulate_grad_batches,
        callbacks=[
            PeriFlowCallback(),
            EarlyStopping("val_auroc", mode="max", patience=args.patience),
            ModelCheckpoint(args.checkpoint_dir, every_n_train_steps=args.save_interval, save_on_train_epoch_end=True),
            RngStates(),
        ],
        accelerator="auto",
        logger=False,
        enable_progress_bar=False,
    )
    model = KnowledgeTracer(args.num_items, args.hidden_size, dropout=0.2, learning_rate=args.learning_rate)
    trainer.fit(model, datamodule=StudentsDataModule(args), ckpt_path=latest_checkpoint(args.checkpoint_dir))
    if trainer.is_global_zero:
        print(f"finished after epoch {trainer.current_epoch} at step {trainer.global_step}", flush=True)


class StudentsDataModule(pl.LightningDataModule):
    """Students for training and other students for validation, the same ones on every rank."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.args = args

    def setup(self, stage: str) -> None:
        args = self.args
        students = make_students(args.num_students, args.num_items, args.num_skills, args.num_answers, args.seed)
        num_val = args.num_students // 5
        self.train_students = Subset(students, range(num_val, args.num_students))
        self.val_students = Subset(students, range(num_val))

    def train_dataloader(self) -> ResumableDataLoader:
        # Each rank's share of them, in an order that goes on after a restart.
        return ResumableDataLoader(self.train_students, self.args.batch_size, seed=self.args.seed, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        # Lightning shares it out to the ranks.
        return DataLoader(self.val_students, batch_size=self.args.batch_size)


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
    parser.add_argument("--checkpoint-dir", type=Path, required=True)
    parser.add_argument("--num-epochs", type=int, default=20)
    parser.add_argument("--patience", type=int, default=3, help="epochs without a better AUROC before it stops")
    parser.add_argument("--save-interval", type=int, help="steps; without it, at the end of every epoch")
    parser.add_argument("--batch-size", type=int, default=32, help="students in a batch, of each process")
    parser.add_argument("--accumulate-grad-batches", type=int, default=2, help="batches in a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--hidden-size", type=int, default=32)
    parser.add_argument("--num-students", type=int, default=1280)
    parser.add_argument("--num-items", type=int, default=50)
    parser.add_argument("--num-skills", type=int, default=5)
    parser.add_argument("--num-answers", type=int, default=30, help="answers of each student")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
