"""What a rank may say in its session, checked field by field: whoever reaches the socket may send anything.

Pure: text in, values out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from periflow_ray.sdk.session import SAVE_NOW

# Far above every cluster; a rank beyond it is a mistake.
MAX_RANKS = 1_000_000
MAX_STEP = 1 << 62


@dataclass(frozen=True)
class Greeting:
    """The first message of a process: who it is, and where it begins to count."""

    rank: int
    local_rank: int
    local_world_size: int | None
    total_train_steps: int | None
    pid: int
    is_guess: bool = False
    resumed_step: int | None = None


@dataclass(frozen=True)
class RankRecords:
    """A rank's step, metrics as (step, Unix time in seconds, values), and where it last asked for an announced save.

    ``asked_step`` is -1 as long as it has not asked.
    """

    step: int
    metrics: tuple[tuple[int, float, Mapping[str, Any]], ...]
    asked_step: int = -1


@dataclass(frozen=True)
class StepAnswer:
    """A rank's step, because it was asked for it."""

    step: int


@dataclass(frozen=True)
class LateAnswer:
    """The announced step, when the rank is beyond it."""

    step: int


@dataclass(frozen=True)
class SaveRequest:
    """A rank waits in ``upload_checkpoint``."""

    step: int
    replace_waiting: bool


@dataclass(frozen=True)
class Farewell:
    """The rank closes its session; ``has_failed`` if it ends by an exception that nobody caught or a failing exit."""

    has_failed: bool = False


RankMessage = Greeting | RankRecords | StepAnswer | LateAnswer | SaveRequest | Farewell


def parse_message(message: Mapping[str, Any]) -> RankMessage:
    """Read a message of a rank.

    Raises:
        ValueError: it is none; says which field, and what is in it.
    """
    kind = message.get("kind")
    match kind:
        case "hello":
            # Earlier versions do not say where they begin.
            is_told = message.get("resumed_step") is not None
            return Greeting(
                rank=_read_int(message, "rank", 0, MAX_RANKS),
                local_rank=_read_int(message, "local_rank", 0, MAX_RANKS),
                local_world_size=_read_optional_int(message, "local_world_size", 1, MAX_RANKS),
                total_train_steps=_read_optional_int(message, "total_train_steps", 1, MAX_STEP),
                pid=_read_int(message, "pid", 1, MAX_STEP),
                is_guess=_read_flag(message, "is_guess"),
                resumed_step=_read_int(message, "resumed_step", 0, MAX_STEP) if is_told else None,
            )
        case "records":
            asked_step = _read_int(message, "asked_step", -1, MAX_STEP) if "asked_step" in message else -1
            return RankRecords(_read_step(message), _read_metrics(message), asked_step)
        case "step":
            return StepAnswer(_read_step(message))
        case "late":
            return LateAnswer(_read_int(message, "step", SAVE_NOW, MAX_STEP))
        case "checkpoint":
            return SaveRequest(
                _read_step(message), _read(message, "replace_waiting", lambda value: type(value) is bool)
            )
        case "bye":
            return Farewell(_read_flag(message, "has_failed"))
    raise ValueError(f"its kind is {_show(kind)}")


def _read_metrics(message: Mapping[str, Any]) -> tuple[tuple[int, float, Mapping[str, Any]], ...]:
    metrics = _read(message, "metrics", lambda value: type(value) is list)
    for metric in metrics:
        if type(metric) is not list or len(metric) != 3:
            raise ValueError(f"a metric is {_show(metric)}")
        step, time_unix_s, values = metric
        if not _is_int(step, 0, MAX_STEP):
            raise ValueError(f"a metric's step is {_show(step)}")
        if type(time_unix_s) not in (int, float) or not math.isfinite(time_unix_s):
            raise ValueError(f"a metric's time is {_show(time_unix_s)}")
        if type(values) is not dict or any(isinstance(value, (list, dict)) for value in values.values()):
            raise ValueError(f"a metric's values are {_show(values)}")
    return tuple((step, float(time_unix_s), values) for step, time_unix_s, values in metrics)


def _read_step(message: Mapping[str, Any]) -> int:
    return _read_int(message, "step", 0, MAX_STEP)


def _read_optional_int(message: Mapping[str, Any], name: str, lowest: int, highest: int) -> int | None:
    return None if message.get(name, ...) is None else _read_int(message, name, lowest, highest)


def _read_flag(message: Mapping[str, Any], name: str) -> bool:
    # Earlier versions do not say it.
    return name in message and bool(_read(message, name, lambda value: type(value) is bool))


def _read_int(message: Mapping[str, Any], name: str, lowest: int, highest: int) -> int:
    number: int = _read(message, name, lambda value: _is_int(value, lowest, highest))
    return number


def _is_int(value: object, lowest: int, highest: int) -> bool:
    return type(value) is int and lowest <= value <= highest


def _read(message: Mapping[str, Any], name: str, is_valid: Callable[[Any], bool]) -> Any:
    if name not in message:
        raise ValueError(f"it has no {name!r}")
    if not is_valid(message[name]):
        raise ValueError(f"its {name!r} is {_show(message[name])}")
    return message[name]


def _show(value: object) -> str:
    # The representation of a deep or long value would take as long as the value is large.
    return f"a {type(value).__name__}" if isinstance(value, (dict, list)) else repr(str(value)[:60])
