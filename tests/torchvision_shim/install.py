"""Make torchvision importable in this Python environment, where it is installed next to a CPU build of PyTorch.

    .venv/bin/python tests/torchvision_shim/install.py

Writes a ``.pth`` file into the environment, so that every process of a job gets the import hook, whatever its
environment variables. Does nothing where torchvision is missing or imports by itself, or when run again.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

SHIM_DIR = Path(__file__).resolve().parent
PTH_NAME = "periflow_ray_torchvision_shim.pth"


def main() -> None:
    site_dir = Path(sysconfig.get_path("purelib"))
    if is_torchvision_broken() and install(site_dir):
        print(f"torchvision's compiled operators do not load here; wrote {site_dir / PTH_NAME}", file=sys.stderr)


def is_torchvision_broken() -> bool:
    """Whether torchvision is installed and cannot be imported, as the environment is now."""
    if find_spec("torchvision") is None:
        return False
    return subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode != 0


def install(site_dir: Path) -> bool:
    """Let Python environments with this site-packages folder load the hook at their start; False if they do."""
    pth_path = site_dir / PTH_NAME
    # A first line that is a folder puts it on sys.path; a line that begins with import is run.
    content = f"{SHIM_DIR}\nimport torchvision_shim\n"
    if pth_path.is_file() and pth_path.read_text() == content:
        return False
    pth_path.write_text(content)
    return True


if __name__ == "__main__":
    main()
