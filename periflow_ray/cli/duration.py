"""Options that are durations: ``30s``, ``2m``, ``1.5h``; a number alone is seconds."""

from __future__ import annotations

import click

from periflow_ray.spec.duration import DURATION_FORM, parse_duration_s


def duration_callback(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """For an option that is a duration: seconds, or None if it was not given.

    Raises:
        click.BadParameter: it is none.
    """
    if value is None:
        return None
    duration_s = parse_duration_s(value)
    if duration_s is None:
        raise click.BadParameter(f"{value!r} is not a duration above 0. {DURATION_FORM}")
    return duration_s
