"""Durations on the command line: ``30s``, ``2m``, ``1.5h``; a number alone is seconds."""

from __future__ import annotations

import re

import click

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*([smh]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


def duration_callback(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """For an option that is a duration: seconds, or None if it was not given."""
    return None if value is None else parse_duration(value)


def parse_duration(text: str) -> float:
    """Seconds of a duration above 0.

    Raises:
        click.BadParameter: it is none.
    """
    match = _DURATION.fullmatch(text.strip())
    duration_s = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if duration_s <= 0:
        raise click.BadParameter(f"{text!r} is not a duration above 0. Give a number and s, m or h: 30s, 2m, 1.5h.")
    return duration_s
