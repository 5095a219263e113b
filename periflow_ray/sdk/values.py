"""Values of a metric as JSON: numbers where they are numbers, else text. A value that fails spoils itself only."""

from __future__ import annotations

import contextlib
import numbers
import sys
from collections.abc import Mapping
from typing import Any

# JSON has no bound, but its readers do; more than this is a float.
_MAX_INT_BITS = 64
# The text of more is cut short by torch itself; a copy of it costs the device's memory.
_MAX_TEXT_ELEMENTS = 1000
_IMMUTABLE = frozenset({type(None), bool, int, float, str})
# One of each device.
_READING_STREAMS: dict[Any, Any] = {}


def values_of_now(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """The same values, as later changes in place leave them: ``running += loss`` is a common accumulator.

    Waits for no device; what is on one is copied there, and is read by ``plain_values``.
    """
    return {name: value if type(value) in _IMMUTABLE else _of_now(value) for name, value in values.items()}


def _of_now(value: Any) -> Any:
    if not hasattr(value, "detach"):
        return plain_value(value)
    try:
        if value.device.type == "cpu":
            return plain_value(value)
        if value.numel() > _MAX_TEXT_ELEMENTS:
            return f"a tensor of {tuple(value.shape)}"
        # On its device, in the order of its own work.
        copied = value.detach().clone()
        return _CudaCopy(copied) if value.device.type == "cuda" else copied
    except Exception:  # No tensor after all.
        return plain_value(value)


class _CudaCopy:
    """A copy that the stream of the training makes; another thread's stream knows nothing of it."""

    __slots__ = ("_event", "_tensor")

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor
        with sys.modules["torch"].cuda.device(tensor.device):
            self._event = sys.modules["torch"].cuda.Event()
            self._event.record()

    def item(self) -> Any:
        """Its number; waits for the device."""
        return self._read().item()

    def __str__(self) -> str:
        return str(self._read())

    def _read(self) -> Any:
        self._event.synchronize()
        # On the stream of the training the copy would wait for all that has been given to the device since.
        with sys.modules["torch"].cuda.stream(_reading_stream(self._tensor.device)):
            return self._tensor.cpu()


def _reading_stream(device: Any) -> Any:
    if device not in _READING_STREAMS:
        _READING_STREAMS[device] = sys.modules["torch"].cuda.Stream(device)
    return _READING_STREAMS[device]


def plain_values(values: Mapping[Any, Any]) -> dict[str, Any]:
    """A mapping of names to None, bool, int, float and str; never raises for what is in it."""
    return {_text(name): plain_value(value) for name, value in values.items()}


def plain_value(value: Any) -> Any:
    """A value as None, bool, int, float or str; tensors and arrays of one element as their number.

    So are ``Decimal``, ``Fraction`` and whatever else is a real number; complex numbers are text.
    """
    try:
        return _plain(value)
    except Exception:  # The user's classes may raise anything.
        return _text(value)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return _without_subclass(value)
    to_number = getattr(value, "item", None)  # A 0-dimensional tensor or NumPy scalar.
    if to_number is None:
        return _real(value)
    try:
        item = to_number()
    except (TypeError, ValueError, RuntimeError):
        return _text(value)
    if isinstance(item, (bool, int, float, str)):
        return _without_subclass(item)
    # A NumPy longdouble stays one; times and bytes are no numbers.
    return _real(item)


def _real(value: Any) -> float | str:
    is_complex = isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real)
    return float(value) if hasattr(type(value), "__float__") and not is_complex else _text(value)


def _without_subclass(value: bool | int | float | str | None) -> bool | int | float | str | None:
    # Another process may not have the class, and its own methods are not to be trusted with this.
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        number = int.__int__(value)
        if number.bit_length() <= _MAX_INT_BITS:
            return number
        try:
            return float(number)
        except OverflowError:
            return f"an integer of {number.bit_length()} bits"
    return float.__float__(value) if isinstance(value, float) else str.__str__(value)


def _text(value: Any) -> str:
    with contextlib.suppress(Exception):
        return str.__str__(value if isinstance(value, str) else str(value))
    return f"<{type(value).__name__}>"
