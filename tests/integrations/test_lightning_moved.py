"""A Lightning training that goes on where ``CKPT_DIR`` has another path: another machine, user, folder or job."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from support.tiny_regression import QUIET, TinyRegression, make_loader

from periflow_ray.lightning import PeriFlowTrainer, checkpoints
from periflow_ray.sdk.session import use_channel_factory


@pytest.mark.parametrize("has_link", [False, True])
def test_the_best_checkpoints_are_known_where_they_are_after_the_folder_has_moved(
    channel, ckpt_dir, tmp_path, monkeypatch, has_link
):
    class Falling(TinyRegression):
        """Worse from epoch to epoch but for the last one, which comes second."""

        def on_train_epoch_end(self) -> None:
            self.log("score", [0.0, 2.0, 3.0, 1.0][self.current_epoch])

    class KeepsPaths(pl.Callback):
        """A callback of the user's own, with paths in its state."""

        state: dict[str, Any]

        def state_dict(self) -> dict[str, Any]:
            directory = os.environ["CKPT_DIR"]
            return {"kept": {f"{directory}/x": [1, (directory, f"{directory}x")]}, "else": "/elsewhere"}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.state = state

    def make(max_epochs: int) -> PeriFlowTrainer:
        keeper = ModelCheckpoint(monitor="score", save_top_k=2, save_last=True)
        return PeriFlowTrainer(**{**QUIET, "max_epochs": max_epochs, "callbacks": [keeper, KeepsPaths()]})

    if has_link:
        (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
        monkeypatch.setenv("CKPT_DIR", str(tmp_path / "link" / "ckpt"))
    make(3).fit(Falling(), make_loader(1))
    moved = tmp_path / "another" / "place"
    shutil.move(ckpt_dir, moved)
    monkeypatch.setenv("CKPT_DIR", str(moved))
    # Started again, in another process.
    monkeypatch.setenv("PROCESSED_ITERS", "3")
    monkeypatch.setattr(checkpoints._Fits, "num_begun", 0)
    use_channel_factory(lambda local_log_name: channel)
    trainer = make(4)
    trainer.fit(Falling(), make_loader(1))

    assert sorted(path.name for path in moved.iterdir()) == ["epoch=0-step=1.ckpt", "epoch=3-step=4.ckpt", "last.ckpt"]
    assert trainer.checkpoint_callback.best_model_path == str(moved / "epoch=0-step=1.ckpt")
    kept = next(each for each in trainer.callbacks if isinstance(each, KeepsPaths)).state
    old = tmp_path / "link" / "ckpt" if has_link else ckpt_dir
    assert kept == {"kept": {f"{moved}/x": [1, (str(moved), f"{old}x")]}, "else": "/elsewhere"}
