"""Modules beside a user's script travel with its function: the processes that call it do not have them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

_INSTALLED = ("site-packages", "dist-packages")


def dump_with_modules(value: Any) -> bytes:
    """Pickle a value with what it uses of its script and of the modules beside that, but not of installed packages."""
    with _by_value(find_local_modules()):
        return bytes(cloudpickle.dumps(value))


def find_local_modules() -> list[ModuleType]:
    """Imported modules in the folder of the script that runs, or in the current one where there is no script."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    folder = Path(script).resolve().parent if script else Path.cwd()
    return [module for name, module in sorted(sys.modules.items()) if name != "__main__" and _is_in(module, folder)]


def _is_in(module: ModuleType, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py"):
        return False
    path = Path(file).resolve()
    return path.is_relative_to(folder) and not any(
        part in _INSTALLED or part.startswith(".") for part in path.relative_to(folder).parts
    )


@contextlib.contextmanager
def _by_value(modules: list[ModuleType]) -> Iterator[None]:
    known = cloudpickle.list_registry_pickle_by_value()
    added = [module for module in modules if module.__name__ not in known]
    for module in added:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)
