"""``hparams``: the parameters of a sweep's trial."""

from __future__ import annotations

import json
import os
from typing import Any

_VARIABLE = "PERIFLOW_HPARAMS"


def hparams() -> dict[str, Any]:
    """The hyperparameters of this trial, by name; empty outside a sweep.

    Example:
        ``lr = pf.hparams().get("lr", 0.01)``
    """
    found: dict[str, Any] = json.loads(os.environ.get(_VARIABLE) or "{}")
    return found
