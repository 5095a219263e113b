"""The parameters of one trial after the other, as Ray Tune draws them from a sweep's space.

Ray Tune is imported when it draws: whoever only reads sweeps does without it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from periflow_ray.errors import UsageError
from periflow_ray.spec.sweep import SweepSpec
from periflow_ray.spec.sweep_parameters import Parameter


def draw_trials(spec: SweepSpec) -> Iterator[dict[str, Any]]:
    """Random values and grids: the same seed gives the same trials; ends where grids are all that is searched.

    The points come first; what they leave out is drawn.
    """
    return (drop_unused(spec, variant) for variant in draw_whole_trials(spec))


def draw_whole_trials(spec: SweepSpec) -> Iterator[dict[str, Any]]:
    """The same, with those parameters, too, that are not used with the values of the others."""
    import numpy as np
    from ray.tune.search.variant_generator import generate_variants

    space = {name: domain_of(parameter, spec.search.name) for name, parameter in spec.parameters.items()}
    random = np.random.RandomState(spec.seed)
    only_grids = spec.num_combinations is not None and spec.num_trials is None
    rounds: Iterable[object] = [None] if only_grids else itertools.count()
    points = iter(spec.points)
    for _ in rounds:
        for _, variant in generate_variants(space, random_state=random):
            yield {**variant, **next(points, {})}


def domain_of(parameter: Parameter, search: str) -> Any:
    """A parameter as Ray Tune has it: a domain, a grid or a value."""
    from ray import tune

    values = list(parameter.values)
    match parameter.kind:
        case "fixed":
            return values[0]
        case "grid":
            return tune.grid_search(values)
        case "choice":
            return tune.grid_search(values) if search == "grid" else tune.choice(values)
    return getattr(tune, parameter.kind)(*values)


def parameter_of(name: str, given: object) -> object:
    """What Ray Tune calls a domain or a grid, as a sweep's file has it; anything else is returned as it is.

    Raises:
        UsageError: a sweep has no such domain.
    """
    from ray.tune.search import sample

    if isinstance(given, Mapping) and set(given) == {"grid_search"}:
        return {"grid": given["grid_search"]}
    if not isinstance(given, sample.Domain):
        return given
    sampler = given.get_sampler()
    step = None
    if isinstance(sampler, sample.Quantized):
        sampler, step = sampler.get_sampler(), sampler.q
    match given, sampler:
        case sample.Categorical(), sample.Uniform() if step is None:
            return {"choice": list(given.categories)}
        case sample.Float(), sample.Normal() if step is None:
            return {"randn": [sampler.mean, sampler.sd]}
        case sample.Float(), sample.LogUniform() if step is None:
            return {"loguniform": [given.lower, given.upper]}
        case sample.Float(), sample.Uniform():
            bounds = [given.lower, given.upper]
            return {"uniform": bounds} if step is None else {"quniform": [*bounds, step]}
        case sample.Integer(), sample.Uniform() if step is None:
            return {"randint": [given.lower, given.upper]}
        case sample.Integer(), sample.LogUniform() if step is None:
            return {"lograndint": [given.lower, given.upper]}
    raise UsageError(
        f"parameters.{name} is a {type(given).__name__} that a sweep does not have; it may be tune.choice, uniform, "
        "loguniform, quniform, randint, lograndint, randn or grid_search, a value, or a form of a sweep's file such as "
        "{'loguniform': [0.0001, 0.1]}."
    )


def share_of(parameter: Parameter, value: float) -> float:
    """Where in its range the value of a parameter is, from 0 to 1; by its logarithm where that is what is uniform."""
    lower, upper = _bounds_of(parameter)
    if parameter.kind == "loguniform":
        share = math.log(value / lower) / math.log(upper / lower)
    else:
        share = (value - lower) / (upper - lower)
    return min(max(share, 0.0), 1.0)


def value_at(parameter: Parameter, share: float) -> float:
    """The value that has this share of a parameter's range; see ``share_of``."""
    lower, upper = _bounds_of(parameter)
    is_logarithmic = parameter.kind == "loguniform"
    value = lower * (upper / lower) ** share if is_logarithmic else lower + share * (upper - lower)
    return min(max(value, lower), upper)


def _bounds_of(parameter: Parameter) -> tuple[float, float]:
    lower, upper = (float(value) for value in parameter.values)
    return lower, upper


def drop_unused(spec: SweepSpec, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that are used with the values of the others."""
    used = dict(parameters)
    # One that is dropped can make others unused.
    while True:
        unused = {
            name
            for name in used
            for other, values in spec.parameters[name].when.items()
            if other not in used or used[other] not in values
        }
        if not unused:
            return used
        used = {name: value for name, value in used.items() if name not in unused}
