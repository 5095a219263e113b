"""What a user asked a sweep for: ``sweep.yml``, or the template's section ``sweep``, as a frozen model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from periflow_ray.spec.duration import Duration, parse_duration_s
from periflow_ray.spec.fields import (
    CountFromOne,
    CountFromZero,
    PositiveNumber,
    Text,
    choice_reader,
    describe_value,
    quote,
    refuse,
    suggest_name,
)
from periflow_ray.spec.section import Section
from periflow_ray.spec.sweep_parameters import (
    LISTED,
    Parameter,
    Value,
    dump_parameter,
    read_parameter,
    read_parameter_name,
    read_value,
    require_parameters,
)

# Tune's own names; what is not here is set by the sweep: metric, mode, time_attr, the space.
SCHEDULER_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "asha": ("max_t", "grace_period", "reduction_factor", "brackets"),
    "hyperband": ("max_t", "reduction_factor", "stop_last_trials"),
    "median": ("grace_period", "min_samples_required", "min_time_slice", "hard_stop"),
    "pbt": (
        "perturbation_interval",
        "burn_in_period",
        "quantile_fraction",
        "resample_probability",
        "perturbation_factors",
        "synch",
    ),
    "pb2": ("perturbation_interval", "quantile_fraction", "synch"),
}
_NEEDS_MAX_T = ("asha", "hyperband")
# All trials run at once, and worse ones go on from better ones' checkpoints.
POPULATIONS = ("pbt", "pb2")
# What a Gaussian process takes, and who has one.
_CONTINUOUS = ("uniform", "loguniform")
_WANT_CONTINUOUS = ("search bayesopt", "scheduler pb2")
SEARCH_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "random": (),
    "grid": (),
    "optuna": (),
    "bayesopt": ("random_search_steps", "patience"),
    "hyperopt": ("n_initial_points", "gamma"),
}
STEP = "step"


@dataclass(frozen=True)
class Method:
    """A scheduler or a way of searching, by name, with Tune's own options for it."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def _method_reader(what: str, options_by_name: Mapping[str, tuple[str, ...]]) -> BeforeValidator:
    names = list(options_by_name)

    def read(given: object) -> Method:
        if isinstance(given, Method):
            return given
        options: Mapping[Any, Any] = {}
        name = given
        if isinstance(given, Mapping):
            name = given.get("type")
            options = {key: value for key, value in given.items() if key != "type"}
        if not isinstance(name, str) or name not in names:
            hint = suggest_name(name, names) if isinstance(name, str) else ""
            shown = describe_value(name) if name is not None else "a mapping without 'type'"
            raise refuse(f"is {shown}; it must be one of {', '.join(names)}, or {{type: NAME, ...}}.{hint}")
        allowed = options_by_name[name]
        for key in options:
            if key not in allowed:
                hint = suggest_name(str(key), list(allowed))
                has = f"takes {', '.join(allowed)}" if allowed else "has no options"
                raise refuse(f"has {quote(str(key))}, and {what} {name} {has}.{hint}")
        return Method(name, {str(key): _read_option(value) for key, value in options.items()})

    return BeforeValidator(read)


def _read_option(value: object) -> Any:
    return [read_value(item) for item in value] if isinstance(value, list | tuple) else read_value(value)


def _dump_method(method: Method) -> dict[str, object]:
    """As a user writes it."""
    return {"type": method.name, **method.options}


def _read_points(given: object) -> tuple[dict[str, Value], ...]:
    if not isinstance(given, list | tuple) or not all(isinstance(point, Mapping) for point in given):
        raise refuse(f"is {describe_value(given)}; it must be a list of mappings, such as [{{lr: 0.01}}]")
    return tuple({str(name): read_value(value) for name, value in point.items()} for point in given)


def _read_stop(given: object) -> dict[str, float]:
    if not isinstance(given, Mapping):
        raise refuse(f"is {describe_value(given)}; it must be a mapping such as {{accuracy: 0.99}} or {{step: 1000}}")
    limits = {}
    for name, value in given.items():
        number = read_value(value)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise refuse(f"has {describe_value(value)} for {quote(str(name))}; it must be a number")
        limits[str(name)] = float(number)
    return limits


def _read_share(value: object) -> float:
    number = read_value(value) if value is not None else 0
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number <= 1:
        raise refuse(f"is {describe_value(value)}; it must be a share of a device, above 0 and at most 1")
    return float(number)


def _find_discontinuous(user: str, name: str, parameter: Parameter) -> Iterator[tuple[str, tuple[str, ...]]]:
    place = ("parameters", name)
    if parameter.kind not in (*_CONTINUOUS, "fixed"):
        text = f"is {parameter.kind}, and {user} takes ranges of real numbers alone"
        yield f"{text}; make it {' or '.join(_CONTINUOUS)}, or fix it", place
    elif parameter.when and user == "scheduler pb2":
        yield f"has a condition, and {user} changes every parameter of a trial; leave 'when' out", place


class TrialResources(Section):
    """What one trial needs."""

    device: Annotated[float, BeforeValidator(_read_share), WithJsonSchema({"type": "number"})] = Field(
        default=1.0, description="Share of a device that a trial of one device takes; 0.25 lets four share one."
    )


class SweepSpec(Section):
    """A search for the best hyperparameters."""

    metric: Text = Field(description="Name of the metric, as the script reports it with pf.metric.")
    mode: Annotated[Literal["min", "max"], BeforeValidator(choice_reader("min", "max"))] = Field(
        description="'min' if the lowest value is the best (a loss), 'max' if the highest is (an accuracy)."
    )
    parameters: Annotated[
        dict[
            Annotated[str, BeforeValidator(read_parameter_name)],
            Annotated[Parameter, BeforeValidator(read_parameter), PlainSerializer(dump_parameter), WithJsonSchema({})],
        ],
        BeforeValidator(require_parameters),
    ] = Field(description="The space: what varies, and in which range.")
    num_trials: CountFromOne | None = Field(
        default=None, description="How many trials run; with grids alone the default is all combinations."
    )
    max_concurrent: CountFromOne | None = Field(
        default=None, description="Trials at a time; the default is as many as the machines have room for."
    )
    time_budget: Duration | None = Field(default=None, description="No trial begins after this time, and all end.")
    max_cost: PositiveNumber | None = Field(
        default=None, description="US dollars; no trial begins at this sum, and all end."
    )
    scheduler: Annotated[
        Method, _method_reader("scheduler", SCHEDULER_OPTIONS), PlainSerializer(_dump_method), WithJsonSchema({})
    ] = Field(
        default=Method("none"),
        description="Which trials end early or are copied: none, asha, hyperband, median, pbt, pb2.",
    )
    search: Annotated[
        Method, _method_reader("search", SEARCH_OPTIONS), PlainSerializer(_dump_method), WithJsonSchema({})
    ] = Field(
        default=Method("random"), description="Where the next trial is: random, grid, optuna, bayesopt, hyperopt."
    )
    seed: CountFromZero = Field(default=0, description="The same seed gives the same random trials.")
    stop: Annotated[dict[str, float], BeforeValidator(_read_stop)] = Field(
        default_factory=dict, description="A trial ends when a metric, or 'step', has come to its value here."
    )
    resources: TrialResources = Field(default=TrialResources(), description="What one trial takes of a machine.")
    points: Annotated[tuple[dict[str, Value], ...], BeforeValidator(_read_points), WithJsonSchema({})] = Field(
        default=(), description="Parameters of the first trials; those that a point leaves out are searched for."
    )

    @model_validator(mode="after")
    def _require_sense(self) -> SweepSpec:
        for problem, key in self._find_problems():
            raise refuse(problem, key=key)
        return self

    def _find_problems(self) -> Iterator[tuple[str, str | tuple[str, ...]]]:
        """What does not fit together, each with the key that it is told at."""
        if self.metric == STEP:
            yield "is 'step', which every report has; name the metric that the script reports", "metric"
        yield from self._find_unknown_names()
        yield from self._find_unsearchable()
        scheduler = self.scheduler.name
        if scheduler in _NEEDS_MAX_T and "max_t" not in self.scheduler.options:
            text = f"is {scheduler} without max_t, the step at which a trial is at its end"
            yield f"{text}; such as {{type: {scheduler}, max_t: 1000}}", "scheduler"
        if scheduler in POPULATIONS:
            yield from self._find_unfit_population(scheduler)
        if self.num_trials is None and self.num_combinations is None:
            yield "is missing; it is required where not every parameter is a grid", "num_trials"

    def _find_unfit_population(self, scheduler: str) -> Iterator[tuple[str, str | tuple[str, ...]]]:
        if "perturbation_interval" not in self.scheduler.options:
            text = f"is {scheduler} without perturbation_interval, the steps between two looks at the population"
            yield f"{text}; such as {{type: {scheduler}, perturbation_interval: 100}}", "scheduler"
        if self.num_wanted < 2 or (self.max_concurrent or self.num_wanted) < self.num_wanted:
            text = f"is {scheduler}, which compares all trials while they run"
            yield f"{text}: give it two at least, and no smaller max_concurrent", "scheduler"
        if self.search.name != "random":
            yield f"is {self.search.name}, and {scheduler} draws at random; leave it out", "search"

    def _find_unknown_names(self) -> Iterator[tuple[str, str]]:
        for name, parameter in self.parameters.items():
            others = [each for each in self.parameters if each != name]
            for other in parameter.when:
                if other not in others:
                    hint = suggest_name(other, others)
                    yield (
                        f"has {name} only when {quote(other)} has some value, and that is no other one.{hint}",
                        "parameters",
                    )
        for point in self.points:
            for name in point:
                if name not in self.parameters:
                    hint = suggest_name(name, list(self.parameters))
                    yield f"has {quote(name)}, which is no parameter.{hint}", "points"

    def _find_unsearchable(self) -> Iterator[tuple[str, str | tuple[str, ...]]]:
        search, scheduler = self.search.name, self.scheduler.name
        for name, parameter in self.parameters.items():
            if search == "grid" and parameter.kind not in (*LISTED, "fixed"):
                yield f"is grid, and {name} is {parameter.kind}; give its values: {{grid: [...]}}", "search"
            if search not in ("grid", "random") and parameter.kind == "grid":
                yield f"is {search}, and {name} is a grid; make it a choice", "search"
            if search == "optuna" and parameter.kind == "randn":
                yield "is randn, and search optuna takes ranges and lists alone", ("parameters", name)
            for user in (f"search {search}", f"scheduler {scheduler}"):
                if user in _WANT_CONTINUOUS:
                    yield from _find_discontinuous(user, name, parameter)
        wants_range = f"scheduler {scheduler}" if scheduler in POPULATIONS else f"search {search}"
        is_fixed = all(parameter.kind == "fixed" for parameter in self.parameters.values())
        if is_fixed and wants_range not in ("search grid", "search random"):
            yield f"has fixed values alone, and {wants_range} needs one at least that varies", "parameters"

    @property
    def num_combinations(self) -> int | None:
        """How many trials the grids have; None where something else is searched, too."""
        grids = (*LISTED, "fixed") if self.search.name == "grid" else ("grid", "fixed")
        if any(parameter.kind not in grids for parameter in self.parameters.values()):
            return None
        return math.prod(len(parameter.values) for parameter in self.parameters.values())

    @property
    def num_wanted(self) -> int:
        """How many trials run."""
        return self.num_trials or self.num_combinations or 1

    @property
    def time_budget_s(self) -> float | None:
        """Seconds; None for no limit."""
        return None if self.time_budget is None else parse_duration_s(self.time_budget)
