from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from support.tiny_regression import QUIET, TinyRegression, make_loader

from periflow_ray.errors import PeriFlowError
from periflow_ray.lightning import PeriFlowCallback, PeriFlowTrainer, checkpoints, latest_checkpoint
from periflow_ray.sdk.session import use_channel_factory


def make_trainer(**options: Any) -> PeriFlowTrainer:
    return PeriFlowTrainer(**{"max_epochs": 2, **QUIET, **options})


def restart(monkeypatch: pytest.MonkeyPatch, processed_iters: int) -> None:
    monkeypatch.setenv("PROCESSED_ITERS", str(processed_iters))
    # In another process.
    monkeypatch.setattr(checkpoints._Fits, "num_begun", 0)


def test_the_trainer_reports_and_uploads_without_any_callback(channel):
    make_trainer().fit(TinyRegression(), make_loader(3))
    # The default ModelCheckpoint keeps one file; the one it replaces is removed after the new one is uploaded.
    assert channel.uploads == [
        (3, ["epoch=0-step=3.ckpt"]),
        (6, ["epoch=0-step=3.ckpt", "epoch=1-step=6.ckpt"]),
    ]
    assert [step for step, _ in channel.take_records()] == [1, 2, 3, 4, 5, 6]


def test_a_callback_given_by_the_user_is_not_doubled(channel):
    trainer = make_trainer(callbacks=PeriFlowCallback(), max_epochs=1)
    trainer.fit(TinyRegression(), make_loader(3))
    assert [step for step, _ in channel.uploads] == [3]
    assert [step for step, _ in channel.take_records()] == [1, 2, 3]


def test_a_checkpoint_saved_by_hand_is_uploaded_once(channel, ckpt_dir):
    trainer = make_trainer(max_epochs=1, enable_checkpointing=False)
    trainer.fit(TinyRegression(), make_loader(3))
    trainer.save_checkpoint(ckpt_dir / "by_hand.ckpt", weights_only=True)
    assert channel.uploads == [(3, ["by_hand.ckpt"])]
    assert "optimizer_states" not in torch.load(ckpt_dir / "by_hand.ckpt", weights_only=True)


def test_a_restarted_job_resumes_from_the_newest_checkpoint_and_counts_on(channel, monkeypatch):
    make_trainer().fit(TinyRegression(), make_loader(3))
    channel.take_records().clear()

    restart(monkeypatch, 6)
    use_channel_factory(lambda local_log_name: channel)
    trainer, module = make_trainer(max_epochs=3), TinyRegression()
    trainer.fit(module, make_loader(3))

    assert (trainer.global_step, trainer.current_epoch, module.seen) == (9, 3, [0, 1, 2])
    assert channel.hello.total_train_steps == 9
    assert [(step, values["iteration"]) for step, values in channel.take_records()] == [(7, 7), (8, 8), (9, 9)]


def test_an_emergency_checkpoint_resumes_with_the_batches_that_the_epoch_has_left(channel, monkeypatch):
    channel.announced_step = 2
    make_trainer(max_epochs=1, enable_checkpointing=False).fit(TinyRegression(), make_loader(5))

    restart(monkeypatch, 2)
    trainer, module = make_trainer(max_epochs=2, enable_checkpointing=False), TinyRegression()
    trainer.fit(module, make_loader(5))

    # Three batches of the first epoch are left. Lightning reads the data loader from its start for them.
    assert module.seen == [0, 1, 2, 0, 1, 2, 3, 4]
    assert (trainer.global_step, trainer.current_epoch) == (10, 2)


class StatefulLoader:
    """Five batches, and it remembers where it was, as torchdata's StatefulDataLoader does."""

    def __init__(self) -> None:
        self._next = 0

    def __len__(self) -> int:
        return 5

    def __iter__(self):
        first, self._next = self._next, 0
        for index, batch in enumerate(make_loader(5)):
            if index >= first:
                self._next = (index + 1) % 5
                yield batch
        self._next = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._next = state["next"]


def test_a_data_loader_with_state_resumes_at_the_very_batch(channel, monkeypatch):
    channel.announced_step = 2
    make_trainer(max_epochs=1, enable_checkpointing=False).fit(TinyRegression(), StatefulLoader())

    restart(monkeypatch, 2)
    module = TinyRegression()
    make_trainer(max_epochs=1, enable_checkpointing=False).fit(module, StatefulLoader())

    assert module.seen[-2:] == [3, 4]


class ModuleWithPathHyperparameter(TinyRegression):
    def __init__(self, data: Path = Path("here")) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_hyperparameters_of_any_class_do_not_hinder_the_resume(channel, monkeypatch):
    make_trainer(max_epochs=1).fit(ModuleWithPathHyperparameter(), make_loader(3))
    restart(monkeypatch, 3)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(ModuleWithPathHyperparameter(), make_loader(3))
    assert trainer.global_step == 6


def test_a_checkpoint_given_by_the_user_wins(channel, monkeypatch, tmp_path):
    make_trainer(max_epochs=1).fit(TinyRegression(), make_loader(3))
    shutil.copy(latest_checkpoint(), tmp_path / "mine.ckpt")
    make_trainer(max_epochs=2).fit(TinyRegression(), make_loader(3), ckpt_path=tmp_path / "mine.ckpt")

    restart(monkeypatch, 6)
    trainer, module = make_trainer(max_epochs=3), TinyRegression()
    trainer.fit(module, make_loader(3), ckpt_path=tmp_path / "mine.ckpt")
    assert len(module.seen) == 6


def test_the_first_start_of_a_job_does_not_resume(channel):
    make_trainer().fit(TinyRegression(), make_loader(3))
    module = TinyRegression()
    make_trainer().fit(module, make_loader(3))
    assert len(module.seen) == 6


def test_a_restart_without_a_usable_checkpoint_is_refused_unless_that_is_meant(channel, monkeypatch):
    restart(monkeypatch, 2)
    module = TinyRegression()
    with pytest.raises(PeriFlowError, match="no usable Lightning checkpoint"):
        make_trainer().fit(module, make_loader(3))
    assert module.seen == []
    monkeypatch.setenv("PERIFLOW_BEGIN_ANEW", "1")
    make_trainer().fit(module, make_loader(3))
    assert len(module.seen) == 6


class Interrupted(Exception):
    """The job's ranks are killed."""


class Fold(TinyRegression):
    """Remembers in its weights whose they are."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.register_buffer("fold", torch.tensor(number))


class InterruptAt(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise Interrupted


def train_folds(num_folds: int, interrupt: dict[int, int]) -> list[tuple[Fold, int]]:
    """One fit after the other; each fold's module, and the step at which it began."""
    trained = []
    for number in range(1, num_folds + 1):
        saving = ModelCheckpoint(filename=f"fold{number}-{{step}}", every_n_train_steps=3, save_top_k=1)
        stops = [InterruptAt(interrupt[number])] if number in interrupt else []
        trainer, module = make_trainer(callbacks=[saving, *stops]), Fold(number)
        trainer.fit(module, make_loader(5))
        trained.append((module, trainer.global_step - len(module.seen)))
    return trained


def test_of_several_fits_only_the_interrupted_one_goes_on_and_from_its_own_checkpoint(channel, ckpt_dir, monkeypatch):
    with pytest.raises(Interrupted):
        train_folds(3, {2: 7})
    assert {path.name for path in ckpt_dir.iterdir()} == {"fold1-step=9.ckpt", "fold2-step=6.ckpt"}

    restart(monkeypatch, 16)
    folds = train_folds(3, {})
    assert [int(module.fold) for module, _ in folds] == [1, 2, 3]
    assert [began_at for _, began_at in folds] == [9, 6, 0]


def test_a_complete_fit_without_a_checkpoint_is_not_trained_again_unless_that_is_meant(channel, ckpt_dir, monkeypatch):
    with pytest.raises(Interrupted):
        train_folds(2, {2: 7})
    (ckpt_dir / "fold1-step=9.ckpt").unlink()
    restart(monkeypatch, 16)
    with pytest.raises(PeriFlowError, match="interrupted in fit number 2 of the script, and of fit number 1"):
        train_folds(2, {})
    restart(monkeypatch, 16)
    monkeypatch.setenv("PERIFLOW_BEGIN_ANEW", "1")
    assert [began_at for _, began_at in train_folds(2, {})] == [0, 6]


def test_what_is_written_in_the_background_is_there_when_it_is_uploaded(channel, ckpt_dir):
    class SlowCheckpointIO(TorchCheckpointIO):
        def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            time.sleep(0.3)
            super().save_checkpoint(*args, **kwargs)

    trainer = make_trainer(plugins=[AsyncCheckpointIO(SlowCheckpointIO())])
    trainer.fit(TinyRegression(), make_loader(3))
    assert channel.uploads == [
        (3, ["epoch=0-step=3.ckpt"]),
        (6, ["epoch=0-step=3.ckpt", "epoch=1-step=6.ckpt"]),
    ]


@pytest.mark.parametrize("rank_file", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"])
def test_a_checkpoint_of_deepspeed_is_a_directory_with_a_file_of_each_rank(channel, ckpt_dir, rank_file):
    make_trainer(max_epochs=1).fit(TinyRegression(), make_loader(3))
    checkpoint = torch.load(latest_checkpoint(), weights_only=True)
    client_state = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
    directory = ckpt_dir / "epoch=1-step=4.ckpt" / "checkpoint"
    directory.mkdir(parents=True)
    torch.save({"module": {}, **client_state, "global_step": 4}, directory / rank_file)
    torch.save({}, directory / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert latest_checkpoint() == directory.parent


def test_the_latest_checkpoint_is_the_furthest_that_can_be_resumed_from(channel, ckpt_dir, caplog):
    keep_all = ModelCheckpoint(save_top_k=-1, filename="{step}")
    trainer = make_trainer(callbacks=[keep_all])
    trainer.fit(TinyRegression(), make_loader(3))
    trainer.save_checkpoint(ckpt_dir / "weights.ckpt", weights_only=True)
    complete = (ckpt_dir / "step=6.ckpt").read_bytes()
    (ckpt_dir / "cut.ckpt").write_bytes(complete[: len(complete) // 2])
    os.utime(ckpt_dir / "step=3.ckpt")

    assert latest_checkpoint() == ckpt_dir / "step=6.ckpt"
    skipped = sorted(Path(record.args[0]).name for record in caplog.records if record.name == "periflow_ray")
    assert skipped == ["cut.ckpt", "weights.ckpt"]


def test_a_sharded_checkpoint_is_a_directory(channel, ckpt_dir):
    make_trainer(max_epochs=1).fit(TinyRegression(), make_loader(3))
    checkpoint = torch.load(latest_checkpoint(), weights_only=True)
    meta = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
    (ckpt_dir / "sharded.ckpt").mkdir()
    torch.save({**meta, "global_step": 4}, ckpt_dir / "sharded.ckpt" / "meta.pt")
    assert latest_checkpoint() == ckpt_dir / "sharded.ckpt"


def test_there_is_no_latest_checkpoint_where_there_is_none(ckpt_dir, monkeypatch):
    assert latest_checkpoint() is None
    monkeypatch.delenv("CKPT_DIR")
    assert latest_checkpoint() is None


def test_outside_a_job_it_is_lightnings_trainer():
    trainer, module = make_trainer(max_epochs=1), TinyRegression()
    trainer.fit(module, make_loader(3))
    assert isinstance(trainer, pl.Trainer)
    assert (trainer.num_devices, trainer.num_nodes, module.seen) == (1, 1, [0, 1, 2])
