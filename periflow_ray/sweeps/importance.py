"""How much each parameter of a sweep mattered, as far as its trials tell."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from periflow_ray.sweeps.journal import Trial

_NUM_GROUPS = 5


def rank_parameters(trials: Sequence[Trial], mode: str, names: Sequence[str]) -> list[tuple[str, float]]:
    """Parameters, the most important first, each with the share of the variance of the best values that it explains.

    Trials are put into groups: those of one value each, or a fifth of the range of a number each. The share is that of
    the variance between the groups (eta squared). It knows nothing of parameters that matter only together.
    """
    judged = [(trial, value) for trial in trials if (value := trial.best(mode)) is not None]
    values = [value for _, value in judged]
    shares = []
    for name in names:
        groups = _group([trial.parameters.get(name) for trial, _ in judged])
        shares.append((name, _explained(groups, values)))
    return sorted(shares, key=lambda share: -share[1])


def _explained(groups: Sequence[Any], values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = fmean(values)
    whole = sum((value - mean) ** 2 for value in values)
    if not whole or not math.isfinite(whole):
        return 0.0
    members: dict[Any, list[float]] = defaultdict(list)
    for group, value in zip(groups, values, strict=True):
        members[group].append(value)
    between = sum(len(inner) * (fmean(inner) - mean) ** 2 for inner in members.values())
    return between / whole


def _group(given: Sequence[Any]) -> list[Any]:
    numbers = sorted({value for value in given if isinstance(value, int | float) and not isinstance(value, bool)})
    if len(numbers) <= _NUM_GROUPS:
        return [repr(value) for value in given]
    # By rank, so that logarithmic ranges need no word.
    place = {number: index * _NUM_GROUPS // len(numbers) for index, number in enumerate(numbers)}
    return [place.get(value, repr(value)) for value in given]
