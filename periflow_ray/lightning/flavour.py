"""Which Lightning to build on: it comes as ``pytorch_lightning`` and as ``lightning.pytorch``, and they do not mix."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from typing import Any

FLAVOURS = ("pytorch_lightning", "lightning.pytorch")


def choose_flavour(loaded_modules: Iterable[str], is_installed: Callable[[str], bool]) -> str:
    """Choose the Lightning that the script imported first, else the one that is installed.

    Args:
        loaded_modules: names of the imported modules, oldest first.
        is_installed: whether a top-level package can be imported.
    Raises:
        ModuleNotFoundError: neither is there.
    """
    for name in loaded_modules:
        if name in FLAVOURS:
            return name
    # Sorted imports put "lightning" before and "pytorch_lightning" after "periflow_ray", so a script that has
    # loaded neither yet is more likely to want the latter.
    for name in FLAVOURS:
        if is_installed(name.partition(".")[0]):
            return name
    raise ModuleNotFoundError(
        "periflow_ray.lightning needs pytorch_lightning or lightning, 2 or newer: pip install pytorch-lightning",
        name="pytorch_lightning",
    )


def has_class_named(instance: object, name: str) -> bool:
    """Whether the object's class or one of its bases has this name, be it ours or one that a script defines.

    PeriFlow's tutorial has users write their own ``PeriFlowCallback`` and ``PeriFlowTrainer``; with one of them and
    one of ours in use, a step would be counted or a checkpoint uploaded twice.
    """
    return any(cls.__name__ == name for cls in type(instance).__mro__)


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


pl: Any = importlib.import_module(choose_flavour(tuple(sys.modules), _is_installed))
