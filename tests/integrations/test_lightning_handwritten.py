"""The callback and the trainer that PeriFlow's tutorial has users write must go on working as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from support.tiny_regression import QUIET, TinyRegression, make_loader

import periflow_ray as pf
from periflow_ray.lightning import PeriFlowCallback as ReadyCallback
from periflow_ray.lightning import PeriFlowTrainer as ReadyTrainer


class PeriFlowCallback(pl.Callback):
    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int, unused: int = 0) -> None:
        pf.start_step()

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, unused: int = 0
    ) -> None:
        pf.metric({"iteration": trainer.global_step, "loss": float(outputs["loss"])})
        pf.end_step()


class PeriFlowTrainer(pl.Trainer):
    def save_checkpoint(self, filepath: Any, weights_only: bool = False, storage_options: Any = None) -> None:
        super().save_checkpoint(filepath, weights_only=weights_only, storage_options=storage_options)
        pf.upload_checkpoint()


def train(trainer_class: Any, callback: pl.Callback, ckpt_dir: Path) -> None:
    pf.init(total_train_steps=4, local_log_name="metrics.log")
    callbacks = [callback, ModelCheckpoint(dirpath=ckpt_dir)]
    trainer_class(max_epochs=2, callbacks=callbacks, **QUIET).fit(TinyRegression(), make_loader(2))


def test_in_local_mode_metrics_are_lines_in_a_file(work_dir: Path):
    train(PeriFlowTrainer, PeriFlowCallback(), work_dir / "ckpt")
    pf.init()  # Closes the session that trained, so that its file is complete.

    lines = [json.loads(line) for line in (work_dir / "metrics.log").read_text().splitlines()]
    assert [(line["step"], line["iteration"], line["loss"]) for line in lines] == [
        (1, 1, 0.0),
        (2, 2, 1.0),
        (3, 3, 0.0),
        (4, 4, 1.0),
    ]
    assert [path.name for path in (work_dir / "ckpt").iterdir()] == ["epoch=1-step=4.ckpt"]


def test_in_a_job_the_node_agent_gets_metrics_and_checkpoints(agent, work_dir: Path):
    train(PeriFlowTrainer, PeriFlowCallback(), work_dir / "ckpt")

    hello, *messages, bye = agent.take_messages()
    metrics = [
        (step, values) for message in messages if message["kind"] == "records" for step, _, values in message["metrics"]
    ]
    checkpoints = [message["step"] for message in messages if message["kind"] == "checkpoint"]
    assert (hello["kind"], hello["total_train_steps"], bye["kind"]) == ("hello", 4, "bye")
    assert metrics == [
        (1, {"iteration": 1, "loss": 0.0}),
        (2, {"iteration": 2, "loss": 1.0}),
        (3, {"iteration": 3, "loss": 0.0}),
        (4, {"iteration": 4, "loss": 1.0}),
    ]
    assert checkpoints == [2, 4]


@pytest.mark.parametrize(
    ("trainer_class", "callback"),
    [(ReadyTrainer, PeriFlowCallback()), (PeriFlowTrainer, ReadyCallback()), (ReadyTrainer, ReadyCallback())],
)
def test_ours_and_theirs_together_count_no_step_and_upload_no_checkpoint_twice(
    channel, ckpt_dir, trainer_class, callback
):
    train(trainer_class, callback, ckpt_dir)
    assert [step for step, _ in channel.uploads] == [2, 4]
    assert [step for step, _ in channel.take_records()] == [1, 2, 3, 4]
