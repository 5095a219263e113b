from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import periflow_ray
from periflow_ray.errors import PeriFlowError
from periflow_ray.lightning.flavour import choose_flavour, read_flavours

# The package of this checkout, wherever the script is.
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join((str(Path(periflow_ray.__file__).parents[1]), *sys.path))}


BOTH = ("torch", "lightning.pytorch", "pytorch_lightning")


@pytest.mark.parametrize(
    ("named_in_files", "loaded", "chosen"),
    [
        ([[], ["lightning.pytorch"], ["pytorch_lightning"]], (), "lightning.pytorch"),
        ([["pytorch_lightning"]], ("lightning.pytorch",), "pytorch_lightning"),
        # "try: import lightning.pytorch" and the other one where that fails.
        ([["lightning.pytorch", "pytorch_lightning"]], (), "lightning.pytorch"),
        ([["lightning.pytorch", "pytorch_lightning"]], ("pytorch_lightning",), "pytorch_lightning"),
        ([[], []], BOTH, "lightning.pytorch"),
        ([], BOTH[::-1], "pytorch_lightning"),
    ],
)
def test_the_lightning_that_the_importing_script_uses_is_used(named_in_files, loaded, chosen):
    assert choose_flavour(named_in_files, loaded, lambda package: True) == chosen


@pytest.mark.parametrize(
    ("source", "flavours"),
    [
        ("import os, lightning.pytorch as pl", ["lightning.pytorch"]),
        ("import lightning as L", ["lightning.pytorch"]),
        ("from lightning import Trainer", ["lightning.pytorch"]),
        ("from lightning.pytorch.cli import LightningCLI", ["lightning.pytorch"]),
        ("def f():\n    import pytorch_lightning as pl", ["pytorch_lightning"]),
        ("from pytorch_lightning.callbacks import Callback", ["pytorch_lightning"]),
        (
            "try:\n  import lightning.pytorch as pl\nexcept ImportError:\n  import pytorch_lightning as pl",
            ["lightning.pytorch", "pytorch_lightning"],
        ),
        ("from lightning.fabric import Fabric\nfrom .lightning import x\nfrom . import lightning", []),
        ("import lightning_utilities", []),
        ("# import lightning\n'import pytorch_lightning'", []),
        ("%%bash no Python", []),
    ],
)
def test_a_file_names_its_lightning_in_its_imports(source, flavours):
    assert read_flavours(source) == flavours


def test_of_one_lightning_that_is_installed_nothing_is_asked():
    assert choose_flavour([["lightning.pytorch"]], BOTH, lambda package: package == "lightning") == "lightning.pytorch"
    assert choose_flavour([["lightning.pytorch"]], (), lambda package: package != "lightning") == "pytorch_lightning"


def test_where_nothing_tells_which_of_two_a_warning_says_what_to_do(caplog):
    assert choose_flavour([[]], (), lambda package: True) == "pytorch_lightning"
    assert "import the one that you use before periflow_ray.lightning" in caplog.text


def test_without_any_lightning_the_error_says_what_to_install():
    with pytest.raises(ModuleNotFoundError, match="pip install pytorch-lightning"):
        choose_flavour([], (), lambda package: False)


# Sorted imports: ours comes before "pytorch_lightning", and the user's own modules may import ours first of all.
@pytest.mark.parametrize(
    ("flavour", "is_helper_first"),
    [
        ("lightning.pytorch", True),
        pytest.param("lightning.pytorch", False, marks=pytest.mark.long),
        pytest.param("pytorch_lightning", True, marks=pytest.mark.long),
    ],
)
def test_a_script_that_imports_ours_first_trains(flavour, is_helper_first, tmp_path):
    pytest.importorskip("lightning", reason="only pytorch_lightning is installed")
    (tmp_path / "helper.py").write_text("from periflow_ray.lightning import PeriFlowCallback, PeriFlowTrainer\n")
    (tmp_path / "main.py").write_text(f"""
from {"helper" if is_helper_first else "periflow_ray.lightning"} import PeriFlowCallback, PeriFlowTrainer
import {flavour} as pl
from {flavour}.demos.boring_classes import BoringModel
assert issubclass(PeriFlowTrainer, pl.Trainer) and issubclass(PeriFlowCallback, pl.Callback)
PeriFlowTrainer(max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False).fit(BoringModel())
""")
    subprocess.run([sys.executable, "main.py"], cwd=tmp_path, env=ENV, timeout=120, check=True)


def test_the_other_lightning_is_refused_with_a_hint():
    pytest.importorskip("lightning", reason="only pytorch_lightning is installed")
    # By name: an import statement in this file would have ours built on it, for all tests of this process.
    pl: Any = importlib.import_module("lightning.pytorch")
    model = importlib.import_module("lightning.pytorch.demos.boring_classes").BoringModel()
    from periflow_ray.lightning import PeriFlowCallback, PeriFlowTrainer, prepare_trainer

    quiet = {"accelerator": "cpu", "logger": False, "max_steps": 1, "enable_progress_bar": False}
    hint = "is no pytorch_lightning.*import the one that you use before periflow_ray.lightning"
    with pytest.raises(PeriFlowError, match=hint):
        pl.Trainer(**quiet, callbacks=[PeriFlowCallback()]).fit(model)
    with pytest.raises(PeriFlowError, match=hint):
        PeriFlowTrainer(**quiet).fit(model)
    with pytest.raises(PeriFlowError, match=hint):
        prepare_trainer(pl.Trainer(**quiet))


def test_lightning_cli_takes_our_trainer_imported_first(tmp_path):
    pytest.importorskip("jsonargparse")
    pytest.importorskip("lightning")
    (tmp_path / "main.py").write_text("""
from periflow_ray.lightning import PeriFlowTrainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, DemoModel
cli = LightningCLI(DemoModel, BoringDataModule, trainer_class=PeriFlowTrainer, run=False)
assert (cli.trainer.num_nodes, cli.trainer.max_epochs) == (2, 3)
""")
    job = {"PERIFLOW_ENABLED": "1", "NPROC_PER_NODE": "1", "NUM_NODES": "2", "WORLD_SIZE": "2", "NODE_RANK": "0"}
    argv = [sys.executable, "main.py", "--trainer.max_epochs=3", "--trainer.logger=false"]
    subprocess.run(argv, cwd=tmp_path, env={**ENV, **job}, timeout=120, check=True)
