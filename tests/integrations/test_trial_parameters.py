"""The parameters of a sweep's trial in the loggers of Lightning and of the Hugging Face trainer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import yaml
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from support.tiny_regression import QUIET, TinyRegression, make_loader
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from periflow_ray.lightning import PeriFlowCallback, PeriFlowTrainer

HPARAMS = {"lr": 0.25, "width": 32, "optimizer": "sgd", "nesterov": True}


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch, channel: Any, ckpt_dir: Path) -> None:
    monkeypatch.setenv("PERIFLOW_HPARAMS", json.dumps(HPARAMS))


class WithOwnHparams(TinyRegression):
    """Keeps what it was made with, as scripts do; its learning rate is not the trial's."""

    def __init__(self, depth: int = 3, lr: float = 0.5) -> None:
        super().__init__()
        self.save_hyperparameters()


class CountingLogger(Logger):
    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        return "counting"

    @property
    def version(self) -> str:
        return "1"

    def log_hyperparams(self, params: Any, *given: Any, **options: Any) -> None:
        self.taken.append(dict(params))

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass


def fit(module: pl.LightningModule, loggers: list[Logger], **options: Any) -> pl.Trainer:
    options = {"max_epochs": 1, "enable_checkpointing": False, **QUIET, **options, "logger": loggers}
    trainer = PeriFlowTrainer(**options)
    trainer.fit(module, make_loader(2))
    return trainer


def read_tab(directory: Path) -> dict[str, Any]:
    """What TensorBoard's tab of hyperparameters has of the run in a folder."""
    events = EventAccumulator(str(directory))
    events.Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()}


def test_each_logger_of_lightning_has_the_parameters_of_the_trial(trial: None, tmp_path: Path) -> None:
    csv, board = CSVLogger(tmp_path, name="csv"), TensorBoardLogger(tmp_path, name="board")
    fit(TinyRegression(), [csv, board])
    assert yaml.safe_load((Path(csv.log_dir) / "hparams.yaml").read_text()) == HPARAMS
    assert read_tab(Path(board.log_dir)) == HPARAMS


def test_what_a_module_keeps_itself_stays_and_wins(trial: None, tmp_path: Path) -> None:
    csv, board = CSVLogger(tmp_path, name="csv"), TensorBoardLogger(tmp_path, name="board")
    module = WithOwnHparams()
    fit(module, [csv, board])
    expected = {**HPARAMS, "depth": 3, "lr": 0.5}
    assert yaml.safe_load((Path(csv.log_dir) / "hparams.yaml").read_text()) == expected
    assert read_tab(Path(board.log_dir)) == expected
    assert dict(module.hparams) == {"depth": 3, "lr": 0.5}


def test_a_logger_is_told_once_however_often_the_trainer_fits(trial: None) -> None:
    logger = CountingLogger()
    trainer = fit(TinyRegression(), [logger])
    trainer.fit(TinyRegression(), make_loader(2))
    assert logger.taken == [HPARAMS]


@pytest.mark.parametrize("options", [{"enable_autolog_hparams": False}, {"is_outside": True}])
def test_who_does_not_want_them_or_has_none_gets_none(
    trial: None, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    if options.pop("is_outside", False):
        monkeypatch.delenv("PERIFLOW_HPARAMS")
    logger = CountingLogger()
    fit(TinyRegression(), [logger], **options)
    assert logger.taken == []


def test_another_rank_than_the_first_tells_nobody(trial: None) -> None:
    logger = CountingLogger()
    trainer = SimpleNamespace(is_global_zero=False, loggers=[logger], datamodule=None)
    PeriFlowCallback().on_fit_start(trainer, TinyRegression())
    assert logger.taken == []


def train_with_transformers(ckpt_dir: Path, **options: Any) -> Any:
    from test_huggingface_callback import make_trainer

    trainer = make_trainer(ckpt_dir, **options)
    trainer.train()
    return trainer


def test_the_hugging_face_trainer_and_its_tensorboard_have_them(
    trial: None, ckpt_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = train_with_transformers(ckpt_dir, report_to=["tensorboard"], save_strategy="epoch")
    assert trainer.state.trial_params == HPARAMS
    saved = json.loads((ckpt_dir / "checkpoint-4" / "trainer_state.json").read_text())
    assert saved["trial_params"] == HPARAMS
    assert read_tab(tmp_path / "board") == HPARAMS


def test_the_hugging_face_trainers_run_of_weights_and_biases_has_them(
    trial: None, ckpt_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    config: dict[str, Any] = {"learning_rate": 0.0}

    def update(values: dict[str, Any], allow_val_change: bool) -> None:
        assert allow_val_change
        config.update(values)

    # The package itself needs its service.
    stand_in = SimpleNamespace(run=SimpleNamespace(config=SimpleNamespace(update=update)))
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    train_with_transformers(ckpt_dir)
    assert config == {"learning_rate": 0.0, **HPARAMS}


def test_outside_a_sweep_the_hugging_face_trainer_has_none(channel: Any, ckpt_dir: Path) -> None:
    pytest.importorskip("transformers")
    assert train_with_transformers(ckpt_dir).state.trial_params is None
