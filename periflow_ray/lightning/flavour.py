"""Which Lightning to build on: it comes as ``pytorch_lightning`` and as ``lightning.pytorch``, and they do not mix."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import linecache
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from periflow_ray.errors import PeriFlowError

logger = logging.getLogger("periflow_ray")

FLAVOURS = ("pytorch_lightning", "lightning.pytorch")
_HINT = "If both are installed, import the one that you use before periflow_ray.lightning."


def choose_flavour(
    named_in_files: Iterable[list[str]], loaded_modules: Iterable[str], is_installed: Callable[[str], bool]
) -> str:
    """Choose the Lightning that is installed; of two the one that the importing script names, else loaded first.

    Args:
        named_in_files: the flavours that each file on the way to this import itself imports, the nearest file first.
        loaded_modules: names of the imported modules, oldest first.
        is_installed: whether a top-level package can be imported.
    Raises:
        ModuleNotFoundError: neither is there.
    """
    installed = [name for name in FLAVOURS if is_installed(name.partition(".")[0])]
    if not installed:
        raise ModuleNotFoundError(
            "periflow_ray.lightning needs pytorch_lightning or lightning, 2 or newer: pip install pytorch-lightning",
            name="pytorch_lightning",
        )
    if len(installed) == 1:
        return installed[0]
    loaded = [name for name in loaded_modules if name in FLAVOURS]
    # Sorted imports put "lightning" before and "pytorch_lightning" after "periflow_ray", so what is loaded says less
    # than what the script is going to import.
    for named in named_in_files:
        if named:
            return next((name for name in loaded if name in named), named[0])
    if not loaded:
        logger.warning("periflow-ray: builds on %s, because no Lightning was imported before. %s", FLAVOURS[0], _HINT)
        return FLAVOURS[0]
    return loaded[0]


def read_flavours(source: str) -> list[str]:
    """The flavours that a Python source imports, in its order; empty for what is no Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    flavours = []
    for node in sorted(imports, key=lambda node: node.lineno):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            modules = [node.module or ""] if node.level == 0 else []
        for module in modules:
            first, _, rest = module.partition(".")
            if first == "pytorch_lightning":
                flavours.append("pytorch_lightning")
            elif first == "lightning" and rest.partition(".")[0] in ("", "pytorch"):
                flavours.append("lightning.pytorch")
    return flavours


def refuse_other_flavour(instance: object, base: type) -> None:
    """Check that a script's trainer or module is of the Lightning that our classes are built on.

    Raises:
        PeriFlowError: it is of the other one, where its methods would be called, and some without an effect.
    """
    if not isinstance(instance, base) and has_class_named(instance, base.__name__):
        raise PeriFlowError(
            f"{type(instance).__module__}.{type(instance).__qualname__} is no {pl.__name__}.{base.__name__}, on which "
            f"periflow_ray.lightning is built here: the two kinds of Lightning, {' and '.join(FLAVOURS)}, do not mix. "
            f"{_HINT}"
        )


def has_class_named(instance: object, name: str) -> bool:
    """Whether the object's class or one of its bases has this name, be it ours or one that a script defines.

    PeriFlow's tutorial has users write their own ``PeriFlowCallback`` and ``PeriFlowTrainer``; with one of them and
    one of ours in use, a step would be counted or a checkpoint uploaded twice.
    """
    return any(cls.__name__ == name for cls in type(instance).__mro__)


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _read_importing_files() -> Iterator[list[str]]:
    frame = sys._getframe()
    seen = {__file__}
    while frame.f_back is not None:
        frame = frame.f_back
        path = frame.f_code.co_filename
        if path not in seen and not path.startswith("<frozen"):
            seen.add(path)
            yield read_flavours("".join(linecache.getlines(path, frame.f_globals)))


pl: Any = importlib.import_module(choose_flavour(_read_importing_files(), tuple(sys.modules), _is_installed))
