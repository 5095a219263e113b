"""How a user's function is called: with its config, or with nothing where it takes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def takes_config(train_loop: Callable[..., Any]) -> bool:
    """Whether the function has a parameter for its config."""
    return bool(inspect.signature(train_loop).parameters)


def call_with_config(train_loop: Callable[..., Any], config: dict[str, Any] | None) -> Any:
    """Call it; returns what it returns."""
    return train_loop(config or {}) if takes_config(train_loop) else train_loop()
