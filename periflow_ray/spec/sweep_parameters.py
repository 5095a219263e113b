"""The parameters of a sweep's space: what varies, in which range, and when."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from periflow_ray.spec.fields import (
    ENV_VAR_NAME_PATTERN,
    PlainScalar,
    describe_value,
    quote,
    refuse,
    suggest_name,
)

Value = str | int | float | bool
# How many values each kind of parameter has; None for any number of them.
KINDS: Mapping[str, tuple[str, int | None]] = {
    "choice": ("[VALUE, ...]", None),
    "grid": ("[VALUE, ...]", None),
    "uniform": ("[LOWER, UPPER]", 2),
    "loguniform": ("[LOWER, UPPER]", 2),
    "quniform": ("[LOWER, UPPER, STEP]", 3),
    "randint": ("[LOWER, UPPER], whole numbers, UPPER excluded", 2),
    "lograndint": ("[LOWER, UPPER], whole numbers, UPPER excluded", 2),
    "randn": ("[MEAN, DEVIATION]", 2),
    "fixed": ("VALUE", 1),
}
_LOGARITHMIC = ("loguniform", "lograndint")
_WHOLE = ("randint", "lograndint")
LISTED = ("choice", "grid")
_EXAMPLE = "{loguniform: [0.0001, 0.1]}"
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
# What a shell or a job's processes need themselves.
_TAKEN_NAMES = frozenset(
    {"PATH", "HOME", "USER", "SHELL", "PWD", "LANG", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"}
    | {"MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "NUM_NODES", "NPROC_PER_NODE", "RANK", "LOCAL_RANK"}
    | {"CKPT_DIR", "PROCESSED_ITERS", "IFS", "PS1", "BASH_ENV"}
)


@dataclass(frozen=True)
class Parameter:
    """One dimension of the space.

    Args:
        kind: of ``KINDS``.
        values: the kind's own, such as the lower and the upper bound.
        when: other parameters and the values of theirs with which this one is used; empty for always.
    """

    kind: str
    values: tuple[Value, ...]
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)


def read_value(value: object) -> Value:
    """A text, a number or a boolean; a number may be written as 1e-4, which YAML takes for text."""
    if isinstance(value, PlainScalar):
        if value.kind == "boolean":
            return value.source.lower() in ("true", "yes", "on")
        return value.source if value.kind == "date" else _parse_number(value.source)
    if isinstance(value, bool | int | float):
        return value
    if not isinstance(value, str) or not value:
        raise refuse(f"has {describe_value(value)}; a value must be text, a number or a boolean")
    return _parse_number(value) if _NUMBER.fullmatch(value) else str(value)


def _parse_number(text: str) -> Value:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def read_parameter(given: object) -> Parameter:
    """``{kind: values}``, or one value alone, which is fixed; ``when`` says with which other values it is used."""
    if isinstance(given, Parameter):
        return given
    if isinstance(given, list | tuple):
        raise refuse(f"is a list; write {{choice: [...]}} or {{grid: [...]}}, or a range such as {_EXAMPLE}")
    if not isinstance(given, Mapping):
        return Parameter("fixed", (read_value(given),))
    kinds = [key for key in given if key != "when"]
    if len(kinds) != 1 or kinds[0] not in KINDS:
        unknown = next((str(key) for key in kinds if key not in KINDS), None)
        hint = "" if unknown is None else suggest_name(unknown, list(KINDS))
        what = f"has {quote(unknown)}" if unknown is not None else f"has {len(kinds)} kinds"
        raise refuse(f"{what}; it must have one of {', '.join(KINDS)}, such as {_EXAMPLE}.{hint}")
    kind = str(kinds[0])
    values = _read_values(kind, given[kind])
    return Parameter(kind, values, _read_conditions(given.get("when")))


def _read_values(kind: str, given: object) -> tuple[Value, ...]:
    form, number = KINDS[kind]
    listed = given if isinstance(given, list | tuple) and kind != "fixed" else [given]
    if not isinstance(listed, list | tuple) or (kind != "fixed" and not isinstance(given, list | tuple)):
        raise refuse(f"has {kind} with {describe_value(given)}; it must be {kind}: {form}")
    values = tuple(read_value(value) for value in listed)
    if not values or (number is not None and len(values) != number):
        raise refuse(f"has {kind} with {len(values)} values; it must be {kind}: {form}")
    if kind in (*LISTED, "fixed"):
        if len(set(map(repr, values))) < len(values):
            raise refuse(f"has a value twice in {kind}")
        return values
    for value in values:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or (kind in _WHOLE and not isinstance(value, int)):
            kind_of = "whole numbers" if kind in _WHOLE else "numbers"
            raise refuse(f"has {kind} with {describe_value(value)}; it must be {kind}: {form}, {kind_of}")
    first, second, *rest = [float(value) for value in values]
    if kind == "randn":
        if second <= 0:
            raise refuse(f"has randn with a deviation of {second:g}; it must be above 0")
    elif first >= second:
        raise refuse(f"has {kind} from {first:g} to {second:g}; the lower bound comes first, and is below the upper")
    if kind in _LOGARITHMIC and first <= 0:
        raise refuse(f"has {kind} from {first:g}; a logarithmic range begins above 0")
    if rest and not 0 < rest[0] <= second - first:
        raise refuse(f"has {kind} with a step of {rest[0]:g}; it must be above 0 and fit into the range")
    for bound in (first, second) if rest else ():
        if not math.isclose(bound / rest[0], round(bound / rest[0])):
            raise refuse(f"has {kind} with a bound of {bound:g}, which is no multiple of its step of {rest[0]:g}")
    return values


def _read_conditions(given: object) -> dict[str, tuple[Value, ...]]:
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not given:
        raise refuse("has 'when' that is no mapping; it must be such as when: {optimizer: [sgd, adam]}")
    return {
        str(name): tuple(read_value(value) for value in (values if isinstance(values, list | tuple) else [values]))
        for name, values in given.items()
    }


def read_parameter_name(given: object) -> str:
    """A name that a shell takes as a variable, and that is not the shell's or periflow-ray's own."""
    if not isinstance(given, str) or not re.fullmatch(ENV_VAR_NAME_PATTERN, given):
        raise refuse("is no name that a shell takes: use letters, digits and underscores, and no digit first")
    if given in _TAKEN_NAMES or given.startswith("PERIFLOW_"):
        raise refuse("is a variable that the job itself needs; give the parameter another name")
    return str(given)


def require_parameters(given: object) -> object:
    """The mapping of parameters, which has at least one."""
    if not isinstance(given, Mapping) or not given:
        raise refuse(f"is {describe_value(given)}; it must be a mapping of names, such as lr: {_EXAMPLE}")
    return given


def dump_parameter(parameter: Parameter) -> dict[str, object]:
    """As a user writes it."""
    values: object = parameter.values[0] if parameter.kind == "fixed" else list(parameter.values)
    when = {name: list(values) for name, values in parameter.when.items()}
    return {parameter.kind: values, **({"when": when} if when else {})}
