"""JSON as every reader knows it: numbers that JSON does not have are text, and numbers again when metrics are read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def dump_json(value: Any, **options: Any) -> str:
    """The text of a value, with ``"NaN"``, ``"Infinity"`` and ``"-Infinity"`` for the numbers that JSON lacks.

    Raises:
        TypeError, ValueError, RecursionError: as ``json.dumps``, which takes the options.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **options)


def restore_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as they were given to ``dump_json``."""
    return {name: _NUMBERS.get(value, value) if isinstance(value, str) else value for name, value in values.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
