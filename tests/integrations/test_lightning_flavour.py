from __future__ import annotations

import subprocess
import sys

import pytest

from periflow_ray.lightning.flavour import choose_flavour


def test_the_lightning_that_the_script_imported_first_is_used():
    everything = ("torch", "lightning.pytorch", "pytorch_lightning")
    assert choose_flavour(everything, lambda package: True) == "lightning.pytorch"
    assert choose_flavour(reversed(everything), lambda package: True) == "pytorch_lightning"


def test_else_the_one_that_is_installed_is_used():
    assert choose_flavour((), lambda package: True) == "pytorch_lightning"
    assert choose_flavour((), lambda package: package == "lightning") == "lightning.pytorch"


def test_without_any_lightning_the_error_says_what_to_install():
    with pytest.raises(ModuleNotFoundError, match="pip install pytorch-lightning"):
        choose_flavour((), lambda package: False)


def test_lightning_pytorch_trains_too():
    pytest.importorskip("lightning", reason="only pytorch_lightning is installed")
    script = """
import lightning.pytorch as pl, torch
from lightning.pytorch.demos.boring_classes import BoringModel
from periflow_ray.lightning import PeriFlowCallback, PeriFlowTrainer
assert issubclass(PeriFlowTrainer, pl.Trainer) and issubclass(PeriFlowCallback, pl.Callback)
PeriFlowTrainer(max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False).fit(BoringModel())
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 0
