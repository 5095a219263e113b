"""Durations, in templates as on the command line: ``30s``, ``2m``, ``1.5h``; a number alone is seconds."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

from periflow_ray.spec.fields import quote, read_text, refuse

DURATION_FORM = "Give a number and s, m or h: 30s, 2m, 1.5h."

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?([smh]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


def parse_duration_s(text: str) -> float | None:
    """Seconds of a duration above 0; None when it is not one."""
    match = _DURATION.fullmatch(text.strip())
    return float(match[1]) * _SECONDS[match[2]] or None if match else None


def read_duration(value: object) -> str:
    """A positive duration, for example ``10m``; a number alone is seconds."""
    text = read_text(value)
    if parse_duration_s(text) is None:
        raise refuse(f"is {quote(text)}; it must be a duration above 0. {DURATION_FORM}")
    return text


Duration = Annotated[
    str,
    BeforeValidator(read_duration),
    WithJsonSchema(
        {
            "type": ["string", "number"],
            "pattern": r"^\s*[0-9]+(\.[0-9]+)? ?[smh]?\s*$",
            "exclusiveMinimum": 0,
        }
    ),
]
