"""Deep knowledge tracing: an LSTM that reads a student's answers and predicts the next one."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import nn
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC


class KnowledgeTracer(pl.LightningModule):
    """Predicts for every attempt whether the answer will be right, from the attempts before it.

    Args:
        num_items: items that can be asked.
        hidden_size: width of the LSTM and of the embeddings.
    """

    def __init__(self, num_items: int, hidden_size: int, dropout: float, learning_rate: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.num_items = num_items
        self.asked = nn.Embedding(num_items, hidden_size)
        # What happened one attempt earlier: item answered wrongly, item answered rightly, or nothing yet.
        self.happened = nn.Embedding(2 * num_items + 1, hidden_size)
        self.lstm = nn.LSTM(2 * hidden_size, hidden_size, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_size, 1)
        # torchmetrics gathers predictions over batches and ranks: an average of the batches' AUROCs is not the AUROC.
        self.train_accuracy, self.train_auroc = BinaryAccuracy(), BinaryAUROC()
        self.val_accuracy, self.val_auroc = BinaryAccuracy(), BinaryAUROC()

    def forward(self, items: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        """Logit of a right answer, students x attempts; attempt t sees the items up to t and the answers before t."""
        happened = items + self.num_items * answers.long()
        nothing_yet = torch.full_like(happened[:, :1], 2 * self.num_items)
        shifted = torch.cat([nothing_yet, happened[:, :-1]], dim=1)
        states, _ = self.lstm(torch.cat([self.asked(items), self.happened(shifted)], dim=2))
        return self.output(self.dropout(states)).squeeze(2)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        items, answers = batch
        logits = self(items, answers)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, answers)
        self.train_accuracy(logits, answers.int())
        self.train_auroc(logits, answers.int())
        self.log("train_loss", loss)
        self.log("train_accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        self.log("train_auroc", self.train_auroc, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        items, answers = batch
        logits = self(items, answers)
        self.val_accuracy(logits, answers.int())
        self.val_auroc(logits, answers.int())
        loss = nn.functional.binary_cross_entropy_with_logits(logits, answers)
        self.log("val_loss", loss, sync_dist=True)
        self.log("val_accuracy", self.val_accuracy)
        self.log("val_auroc", self.val_auroc)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        metrics = self.trainer.callback_metrics
        # The module's print() speaks on rank 0 alone.
        self.print(
            f"epoch {self.current_epoch}: val_loss {metrics['val_loss']:.4f}, "
            f"accuracy {self.val_accuracy.compute():.1%}, AUROC {self.val_auroc.compute():.3f}",
            flush=True,
        )

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}
