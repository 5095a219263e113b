"""torchvision can be used next to a CPU build of PyTorch, in this process's children too."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SHIM_DIR = Path(__file__).resolve().parents[1] / "torchvision_shim"

pytestmark = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")


def run_python(code: str, **env: str) -> str:
    completed = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.strip()


def test_children_with_the_folder_on_their_pythonpath_import_torchvision():
    code = "import torchvision; print(torchvision.models.get_model('resnet18', weights=None, num_classes=7).fc)"
    assert run_python(code, PYTHONPATH=str(SHIM_DIR)) == "Linear(in_features=512, out_features=7, bias=True)"


def test_a_python_that_does_not_use_torchvision_does_not_pay_for_torch():
    code = "import sys, torchvision_shim; from importlib.util import find_spec; find_spec('torchvision')"
    assert run_python(f"{code}; print('torch' in sys.modules)", PYTHONPATH=str(SHIM_DIR)) == "False"


def test_installing_writes_a_pth_file_once(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(SHIM_DIR)!r}); import install; from pathlib import Path; "
    code += f"site_dir = Path({str(tmp_path)!r}); print(install.install(site_dir), install.install(site_dir))"
    assert run_python(code) == "True False"
    [pth_path] = tmp_path.iterdir()
    assert pth_path.read_text() == f"{SHIM_DIR}\nimport torchvision_shim\n"
