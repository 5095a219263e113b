from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import periflow_ray as pf
from periflow_ray.huggingface import PeriFlowCallback, latest_checkpoint
from periflow_ray.sdk.session import use_channel_factory


class TinyModel(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, rows: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (rows * self.weight - labels).square().mean()}


class EightRows(Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"rows": torch.tensor([1.0]), "labels": torch.tensor([3.0])}


def make_trainer(ckpt_dir: Path, **options: Any) -> Trainer:
    """Four optimizer steps: one epoch of eight rows, two rows a batch."""
    options = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.0,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 2,
        **options,
    }
    arguments = TrainingArguments(output_dir=str(ckpt_dir), **options)
    data = {"train_dataset": EightRows(), "eval_dataset": EightRows()}
    return Trainer(TinyModel(), arguments, **data, callbacks=[PeriFlowCallback()])


def names_of(uploads: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    return [(step, sorted({file.split("/")[0] for file in files})) for step, files in uploads]


def test_every_optimizer_step_is_a_step_and_logs_are_metrics(channel, ckpt_dir):
    make_trainer(ckpt_dir).train()
    assert channel.hello.total_train_steps == 4
    records = channel.take_records()
    assert [(step, values["iteration"], values.get("loss")) for step, values in records] == [
        (2, 2, 4.0),
        (4, 4, 4.0),
        (4, 4, None),  # The trainer's summary: its runtime and the mean loss.
    ]
    assert records[2][1]["train_loss"] == 4.0


def test_accumulated_batches_are_one_step(channel, ckpt_dir):
    make_trainer(ckpt_dir, gradient_accumulation_steps=2).train()
    assert channel.hello.total_train_steps == 2
    assert [step for step, _ in channel.take_records()] == [2, 2]


def test_saved_checkpoints_are_uploaded(channel, ckpt_dir):
    make_trainer(ckpt_dir, save_strategy="steps", save_steps=2).train()
    assert names_of(channel.uploads) == [(2, ["checkpoint-2"]), (4, ["checkpoint-2", "checkpoint-4"])]


def test_an_announced_step_makes_the_trainer_save_there(channel, ckpt_dir):
    channel.announced_step = 3
    make_trainer(ckpt_dir).train()
    assert names_of(channel.uploads) == [(3, ["checkpoint-3"])]


def test_an_emergency_that_lasts_saves_once(channel, ckpt_dir):
    channel.announced_step = -1
    make_trainer(ckpt_dir).train()
    assert names_of(channel.uploads) == [(1, ["checkpoint-1"])]


def test_a_restarted_job_goes_on_where_it_was(channel, ckpt_dir, monkeypatch):
    channel.announced_step = 3
    make_trainer(ckpt_dir).train()
    channel.take_records().clear()

    monkeypatch.setenv("PROCESSED_ITERS", "3")
    channel.announced_step = -2
    use_channel_factory(lambda local_log_name: channel)
    make_trainer(ckpt_dir, logging_steps=1).train(resume_from_checkpoint=latest_checkpoint())

    assert channel.hello.total_train_steps == 4
    assert [(step, values["iteration"]) for step, values in channel.take_records()] == [(4, 4), (4, 4)]


@pytest.mark.parametrize("is_old_folder_there", [False, True])
def test_the_best_checkpoint_is_known_where_it_is_after_the_folder_has_moved(
    channel, ckpt_dir, tmp_path, monkeypatch, is_old_folder_there
):
    losses = itertools.chain([1.0, 3.0], itertools.repeat(4.0))
    options = {
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "made",
        "greater_is_better": False,
    }

    def train(**more: Any) -> Trainer:
        trainer = make_trainer(ckpt_dir, **{**options, **more})
        trainer.label_names = ["labels"]
        trainer.compute_metrics = lambda prediction: {"made": next(losses)}
        trainer.train(resume_from_checkpoint=latest_checkpoint())
        return trainer

    train()
    channel.take_records()
    saved = sorted(path.name for path in ckpt_dir.iterdir())
    moved = tmp_path / "moved"
    shutil.copytree(ckpt_dir, moved)
    if not is_old_folder_there:
        shutil.rmtree(ckpt_dir)
    ckpt_dir = moved
    monkeypatch.setenv("CKPT_DIR", str(moved))
    monkeypatch.setenv("PROCESSED_ITERS", "2")
    use_channel_factory(lambda local_log_name: channel)

    trainer = train(max_steps=4)

    assert saved == ["checkpoint-1", "checkpoint-2"]
    assert trainer.state.best_model_checkpoint == str(moved / "checkpoint-1")
    assert sorted(path.name for path in moved.iterdir()) == ["checkpoint-1", "checkpoint-4"]


def test_a_finished_training_that_is_restarted_is_no_error(channel, ckpt_dir, monkeypatch):
    make_trainer(ckpt_dir, save_strategy="steps", save_steps=4).train()
    channel.take_records()
    monkeypatch.setenv("PROCESSED_ITERS", "4")
    use_channel_factory(lambda local_log_name: channel)
    make_trainer(ckpt_dir).train(resume_from_checkpoint=latest_checkpoint())
    assert channel.hello.total_train_steps is None


def test_a_script_that_called_init_keeps_its_total(channel, ckpt_dir):
    pf.init(total_train_steps=100)
    make_trainer(ckpt_dir).train()
    assert channel.hello.total_train_steps == 100


def test_evaluation_without_training_needs_no_session(ckpt_dir):
    trainer = make_trainer(ckpt_dir)
    trainer.label_names = ["labels"]
    assert trainer.evaluate(EightRows())["eval_loss"] == 4.0


def test_the_latest_checkpoint_is_the_newest_complete_one(ckpt_dir, monkeypatch):
    assert latest_checkpoint() is None
    states = {"checkpoint-9": "{}", "checkpoint-10": "{}", "checkpoint-11": '{"cut', "checkpoint-x": "{}"}
    for name, state in states.items():
        (ckpt_dir / name).mkdir()
        (ckpt_dir / name / "trainer_state.json").write_text(state)
    (ckpt_dir / "checkpoint-12").mkdir()
    assert latest_checkpoint() == str(ckpt_dir / "checkpoint-10")
    monkeypatch.delenv("CKPT_DIR")
    assert latest_checkpoint() is None
    assert latest_checkpoint(ckpt_dir) == str(ckpt_dir / "checkpoint-10")
