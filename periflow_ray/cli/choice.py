"""Options with a few known values: a wrong one is answered with the nearest of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import click

from periflow_ray.names import suggest_names


class Choice(click.Choice[str]):
    """A choice whose error names the nearest value."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        return _describe(str(value), [str(choice) for choice in self.choices])


def require_known(option: str, given: str | None, known: Collection[str]) -> str | None:
    """The value as it is known, whatever its case; for values that are too many to list in the help.

    Raises:
        click.BadParameter: it is none of these.
    """
    if given is None:
        return None
    by_folded = {name.lower(): name for name in known}
    if given.strip().lower() not in by_folded:
        raise click.BadParameter(_describe(given, sorted(known)), param_hint=f"'{option}'")
    return by_folded[given.strip().lower()]


def _describe(given: str, known: Collection[str]) -> str:
    return f"{given!r} is not one of {', '.join(known)}.{suggest_names(given, known, cutoff=0.5)}"
