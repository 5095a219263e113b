"""Whether the torch that a command finds fits the NVIDIA driver of its node; without starting either of them.

A CUDA of the driver's major version runs, even if it is newer: see NVIDIA's "CUDA Compatibility". One of a later major
version does not: torch then finds no GPU, and a script may train on the CPU without a word.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from pathlib import Path

_VERSION = re.compile(r"^__version__\s*=\s*['\"]([^'\"]+)", re.MULTILINE)
_CUDA = re.compile(r"^cuda\s*(?::[^=\n]*)?=\s*['\"](\d+)\.(\d+)", re.MULTILINE)


# The version of torch, and that of the CUDA that it is built for.
TorchVersion = tuple[str, tuple[int, int]]


def find_torch(package_dirs: Iterable[str]) -> TorchVersion | None:
    """Version of the torch that is found first, and the CUDA that it is built for; None without either of them."""
    for directory in package_dirs:
        try:
            text = (Path(directory) / "torch" / "version.py").read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        return read_torch_version(text)
    return None


def read_torch_version(text: str) -> TorchVersion | None:
    """What torch's ``version.py`` says; None where it is not built for CUDA."""
    version, cuda = _VERSION.search(text), _CUDA.search(text)
    return None if version is None or cuda is None else (version[1], (int(cuda[1]), int(cuda[2])))


def find_driver_cuda(library: str = "libcuda.so.1") -> tuple[int, int] | None:
    """The newest CUDA that the driver of this machine knows; None where there is no driver."""
    number = ctypes.c_int()
    try:
        if ctypes.CDLL(library).cuDriverGetVersion(ctypes.byref(number)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return number.value // 1000, number.value % 1000 // 10


def describe_mismatch(torch: TorchVersion | None, driver_cuda: tuple[int, int] | None, node_rank: int) -> str | None:
    """What does not fit, and what to do; None where nothing is known to be wrong."""
    if torch is None or driver_cuda is None or torch[1][0] <= driver_cuda[0]:
        return None
    version, cuda = torch
    return (
        f"torch {version} on node {node_rank} is built for CUDA {cuda[0]}.{cuda[1]}, and the NVIDIA driver there "
        f"is for CUDA {driver_cuda[0]}.{driver_cuda[1]} at most: torch will find no GPU. Ask for a torch of CUDA "
        f"{driver_cuda[0]} in job_setting.python, or use machines with a newer driver"
    )
