"""Dataclasses from parsed JSON: what is not known is ignored, what is missing or of the wrong kind is told. Pure."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Union, cast

# Whole numbers and others are not told apart: JSON does not.
_SCALARS: Mapping[Any, tuple[type, ...]] = {int: (int, float), float: (int, float), str: (str,)}


def build(kind: type, fields: Any, path: str, problems: list[str]) -> Any:
    """A dataclass with what is known of the fields; nested ones are dataclasses, too, and so are tuples and mappings.

    Args:
        fields: parsed JSON.
        path: where in the document they are, ``""`` or ending in a dot.
        problems: what is wrong is added; the result counts only if nothing was.
    """
    if not isinstance(fields, dict):
        problems.append(f"'{path.removesuffix('.')}' is {name_type(fields)}, not a JSON object")
        return None
    shape = _shape_of(kind)
    values = {name: fields[name] for name in shape.names if name in fields}
    for name, nested in shape.nested.items():
        value = values.get(name)
        if name not in values or (value is None and nested.is_optional):
            continue
        if nested.is_many:
            values[name] = build_all(nested.kind, value, f"{path}{name}", problems)
        elif nested.is_mapping:
            values[name] = _build_by_name(nested.kind, value, f"{path}{name}", problems)
        else:
            values[name] = build(nested.kind, value, f"{path}{name}.", problems)
    for name, allowed in shape.scalars.items():
        if name in values and not isinstance(values[name], allowed):
            expected = "a text" if str in allowed else "a number"
            problems.append(f"'{path}{name}' is {name_type(values[name])}, not {expected}")
    missing = [name for name in shape.required if name not in values]
    problems += [f"it has no '{path}{name}'" for name in missing]
    return None if missing else kind(**values)


def build_all(kind: type, entries: Any, path: str, problems: list[str]) -> tuple[Any, ...]:
    """Dataclasses from a list; see ``build``."""
    if not isinstance(entries, list):
        problems.append(f"{repr(path) if path else 'it'} is {name_type(entries)}, not a list")
        return ()
    return tuple(build(kind, entry, f"{path}[{index}].", problems) for index, entry in enumerate(entries))


def name_type(value: Any) -> str:
    """How messages call a value of JSON."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _build_by_name(kind: type, entries: Any, path: str, problems: list[str]) -> dict[str, Any]:
    if not isinstance(entries, dict):
        problems.append(f"'{path}' is {name_type(entries)}, not a JSON object")
        return {}
    return {name: build(kind, entry, f"{path}.{name}.", problems) for name, entry in entries.items()}


@dataclass(frozen=True)
class _Nested:
    """A field whose value is a dataclass, or (``is_many``) a tuple of them, or (``is_mapping``) some by their names."""

    kind: type
    is_many: bool = False
    is_mapping: bool = False
    is_optional: bool = False


@dataclass(frozen=True)
class _Shape:
    """What a dataclass takes, in its order."""

    names: tuple[str, ...]
    required: tuple[str, ...]
    nested: Mapping[str, _Nested]
    scalars: Mapping[str, tuple[type, ...]]


@functools.cache
def _shape_of(kind: type) -> _Shape:
    hints = typing.get_type_hints(kind)
    fields = [field for field in dataclasses.fields(cast(Any, kind)) if field.init]
    nested = {field.name: _find_nested(hints[field.name]) for field in fields}
    scalars = {field.name: _find_scalars(hints[field.name]) for field in fields}
    return _Shape(
        names=tuple(field.name for field in fields),
        required=tuple(
            field.name
            for field in fields
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ),
        nested={name: found for name, found in nested.items() if found is not None},
        scalars={name: found for name, found in scalars.items() if found},
    )


def _find_nested(hint: Any) -> _Nested | None:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        others = [arg for arg in args if arg is not types.NoneType]
        found = _find_nested(others[0]) if len(others) == 1 else None
        return None if found is None else dataclasses.replace(found, is_optional=True)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis and dataclasses.is_dataclass(args[0]):
        return _Nested(cast(type, args[0]), is_many=True)
    if origin is Mapping and dataclasses.is_dataclass(args[1]):
        return _Nested(cast(type, args[1]), is_mapping=True)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _Nested(hint)
    return None


def _find_scalars(hint: Any) -> tuple[type, ...]:
    """The types that a number or text may have; empty for all other hints."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        others = [arg for arg in typing.get_args(hint) if arg is not types.NoneType]
        found = _SCALARS.get(others[0], ()) if len(others) == 1 else ()
        return (*found, types.NoneType) if found else ()
    return _SCALARS.get(hint, ()) if isinstance(hint, type) else ()
