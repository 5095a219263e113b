"""Lets PyPI's torchvision import next to a CPU build of PyTorch, where its compiled operators do not load.

Importing this module only registers an import hook, so it costs a Python start nothing: torch is imported when
torchvision is. Where torchvision's own operators load, nothing is changed.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

# torchvision 0.28 registers shape functions for these at import, in torchvision/_meta_registrations.py.
OPERATORS = (
    "nms",
    "qnms",
    "roi_align",
    "_roi_align_backward",
    "qroi_align",
    "ps_roi_align",
    "_ps_roi_align_backward",
    "roi_pool",
    "_roi_pool_backward",
    "ps_roi_pool",
    "_ps_roi_pool_backward",
    "deform_conv2d",
    "_deform_conv2d_backward",
)


class TorchvisionFinder:
    """Finds nothing itself; the first look for torchvision declares its operators, then the search goes on."""

    is_done = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        # find_spec alone (is it installed?) must stay cheap: wait for the import, whose first submodule is this one.
        if name == "torchvision.extension" and not self.is_done and path is not None:
            self.is_done = True
            declare_operators(str(next(iter(path))))
        return None


def declare_operators(torchvision_dir: str) -> None:
    """Declare torchvision's operators to torch, unless the compiled ones of ``torchvision_dir`` load."""
    import torch

    compiled = importlib.machinery.PathFinder.find_spec("_C", [torchvision_dir])
    if compiled is not None and compiled.origin is not None:
        try:
            torch.ops.load_library(compiled.origin)
        except OSError:
            pass
        else:
            return
    global _library
    _library = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        _library.define(f"{operator}(Tensor x) -> Tensor")


_library = None  # Declared operators live as long as their Library object.

if not any(isinstance(finder, TorchvisionFinder) for finder in sys.meta_path):
    sys.meta_path.insert(0, TorchvisionFinder())
