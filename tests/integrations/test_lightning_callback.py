from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from support.tiny_regression import QUIET, TinyRegression, make_loader
from torch.utils.data import DataLoader, IterableDataset

import periflow_ray as pf
from periflow_ray.lightning import PeriFlowCallback


def fit(module: pl.LightningModule, *args: Any, num_batches: int = 3, **options: Any) -> pl.Trainer:
    options = {"max_epochs": 2, "enable_checkpointing": False, "callbacks": [PeriFlowCallback()], **QUIET, **options}
    trainer = pl.Trainer(**options)
    trainer.fit(module, make_loader(num_batches), *args)
    return trainer


def test_every_batch_is_a_step_with_its_iteration_and_loss(channel):
    fit(TinyRegression())

    assert channel.hello.total_train_steps == 6
    assert channel.take_records() == [
        (1, {"iteration": 1, "loss": 0.0}),
        (2, {"iteration": 2, "loss": 1.0}),
        (3, {"iteration": 3, "loss": 2.0}),
        (4, {"iteration": 4, "loss": 0.0}),
        (5, {"iteration": 5, "loss": 1.0}),
        (6, {"iteration": 6, "loss": 2.0}),
    ]


def test_a_script_that_called_init_keeps_its_total(channel):
    pf.init(total_train_steps=100)
    fit(TinyRegression())
    assert channel.hello.total_train_steps == 100


@pytest.mark.parametrize(
    ("options", "total"),
    [
        ({"max_epochs": 4}, 20),
        ({"max_epochs": 4, "limit_train_batches": 2}, 8),
        ({"max_epochs": -1, "max_steps": 3}, 3),
        ({"max_epochs": 4, "max_steps": 7}, 7),
        # An epoch of 5 batches makes optimizer steps of 2, 2 and 1 batches.
        ({"max_epochs": 9, "max_steps": 4, "accumulate_grad_batches": 2}, 7),
    ],
)
def test_the_total_counts_batches_from_what_limits_the_training(channel, options, total):
    fit(TinyRegression(), num_batches=5, **options)
    assert channel.hello.total_train_steps == total


class RowsWithoutLength(IterableDataset[Any]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.zeros(3, 1))


def test_there_is_no_total_where_the_data_has_no_length(channel):
    loader = DataLoader(RowsWithoutLength(), batch_size=None)
    pl.Trainer(max_epochs=1, callbacks=[PeriFlowCallback()], **QUIET).fit(TinyRegression(), loader)
    assert channel.hello.total_train_steps is None


class DictOutputs(TinyRegression):
    def make_outputs(self, loss: torch.Tensor) -> Any:
        return {"loss": loss, "more": 5}


class SkippedBatches(TinyRegression):
    def make_outputs(self, loss: torch.Tensor) -> Any:
        return None


class ManualOptimization(TinyRegression):
    automatic_optimization = False


@pytest.mark.parametrize(
    ("module", "first"),
    [
        (DictOutputs(), {"iteration": 1, "loss": 0.0}),
        (SkippedBatches(), {"iteration": 1}),
        (ManualOptimization(), {"iteration": 0, "loss": 0.0}),
    ],
)
def test_any_output_of_training_step_will_do(channel, module, first):
    fit(module)
    assert channel.take_records()[0] == (1, first)


def test_the_loss_is_the_users_when_gradients_accumulate(channel):
    fit(TinyRegression(), max_epochs=1, accumulate_grad_batches=3)
    assert channel.take_records() == [
        (1, {"iteration": 0, "loss": 0.0}),
        (2, {"iteration": 0, "loss": 1.0}),
        (3, {"iteration": 1, "loss": 2.0}),
    ]


class LoggingModule(TinyRegression):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if batch_idx != 1:
            self.log("rows", 10.0 + batch_idx)
        self.log("mean", float(batch_idx), on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", 7.0 + batch_idx)


def test_what_the_module_logs_is_sent_once_and_the_sanity_check_is_not(channel):
    fit(LoggingModule(), make_loader(3), max_epochs=1, num_sanity_val_steps=2)
    assert channel.take_records() == [
        (1, {"iteration": 1, "loss": 0.0, "rows": 10.0}),
        (2, {"iteration": 2, "loss": 1.0}),
        (3, {"iteration": 3, "loss": 2.0, "rows": 12.0}),
        (3, {"iteration": 3, "val_loss": 8.0}),
        (3, {"iteration": 3, "mean": 1.0}),
    ]


def test_checkpoints_of_a_plain_trainer_go_to_the_job_and_are_uploaded(channel, ckpt_dir):
    fit(TinyRegression(), enable_checkpointing=True, callbacks=[ModelCheckpoint(save_top_k=-1), PeriFlowCallback()])
    assert channel.uploads == [
        (3, ["epoch=0-step=3.ckpt"]),
        (6, ["epoch=0-step=3.ckpt", "epoch=1-step=6.ckpt"]),
    ]


def test_a_dirpath_that_the_user_gave_stays(channel, ckpt_dir):
    checkpoint = ModelCheckpoint(dirpath=ckpt_dir / "mine", filename="last")
    fit(TinyRegression(), max_epochs=1, enable_checkpointing=True, callbacks=[checkpoint, PeriFlowCallback()])
    assert channel.uploads == [(3, ["mine/last.ckpt"])]


def test_an_announced_step_saves_there_in_the_middle_of_the_epoch(channel, ckpt_dir):
    channel.announced_step = 2
    fit(TinyRegression())
    assert channel.uploads == [(2, ["emergency.ckpt"])]
    assert torch.load(ckpt_dir / "emergency.ckpt", weights_only=True)["global_step"] == 2


def test_an_emergency_that_lasts_saves_once(channel):
    channel.announced_step = -1
    fit(TinyRegression())
    assert channel.uploads == [(1, ["emergency.ckpt"])]


def test_an_emergency_waits_until_gathered_gradients_are_applied(channel, ckpt_dir):
    channel.announced_step = 2
    fit(TinyRegression(), num_batches=8, max_epochs=1, accumulate_grad_batches=4)
    assert channel.uploads == [(4, ["emergency.ckpt"])]
    assert torch.load(ckpt_dir / "emergency.ckpt", weights_only=True)["global_step"] == 1


def test_an_emergency_saves_beside_the_users_checkpoints_where_there_is_no_ckpt_dir(
    channel, ckpt_dir, monkeypatch, tmp_path
):
    channel.announced_step = 1
    monkeypatch.delenv("CKPT_DIR")
    monkeypatch.setattr(channel, "save_checkpoint", lambda step, _: channel.uploads.append((step, [])))
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "mine", save_top_k=0)
    fit(TinyRegression(), max_epochs=1, enable_checkpointing=True, callbacks=[checkpoint, PeriFlowCallback()])
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["emergency.ckpt"]


def test_early_stopping_ends_the_training_with_every_step_closed(channel):
    stopping = EarlyStopping("rows", patience=0, mode="min", check_on_train_epoch_end=True)
    fit(LoggingModule(), max_epochs=9, callbacks=[stopping, PeriFlowCallback()])
    assert [step for step, values in channel.take_records() if "loss" in values] == [1, 2, 3, 4, 5, 6]


class ShortEpochs(TinyRegression):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 1 else None


def test_a_hook_that_skips_the_rest_of_the_epoch_leaves_no_step_open(channel):
    fit(ShortEpochs())
    assert [step for step, values in channel.take_records() if "loss" in values] == [1, 3]
    pf.init()
    pf.start_step()


class FailingModule(TinyRegression):
    def make_outputs(self, loss: torch.Tensor) -> Any:
        raise RuntimeError("out of luck")


def test_an_exception_leaves_no_step_open_so_that_another_fit_can_follow(channel):
    callback = PeriFlowCallback()
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(FailingModule(), callbacks=[callback])
    fit(TinyRegression(), max_epochs=1, callbacks=[callback])
    assert [step for step, _ in channel.take_records()] == [2, 3, 4]


def test_a_resumed_training_that_loads_nothing_is_refused_unless_that_is_meant(channel, monkeypatch):
    monkeypatch.setenv("PROCESSED_ITERS", "6")
    module = TinyRegression()
    with pytest.raises(pf.PeriFlowError, match=r"resumes at step 6, but this training has loaded no checkpoint"):
        fit(module)
    assert (module.seen, channel.hello) == ([], None)
    monkeypatch.setenv("PERIFLOW_BEGIN_ANEW", "1")
    fit(module)
    # It was at its end already: there is no progress to show.
    assert channel.hello.total_train_steps is None


def test_outside_a_job_metrics_go_to_a_file_and_nothing_else_is_needed(work_dir: Path):
    pf.init(local_log_name="metrics.log")
    fit(TinyRegression(), enable_checkpointing=True)
    assert (work_dir / "checkpoints" / "epoch=1-step=6.ckpt").exists()
