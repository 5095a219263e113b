"""Validation errors in the user's words: which key, what was given, what is allowed, the nearest valid name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from periflow_ray.spec.fields import describe_value, quote, suggest_name
from periflow_ray.spec.models import COMMAND_STEPS_TAG, COMMAND_TEXT_TAG, JobSpec
from periflow_ray.spec.section import Section
from periflow_ray.spec.yaml_tree import BROKEN, KeyPath, Position

_COMMAND = ("job_setting", "docker", "command")


@dataclass(frozen=True)
class KeyProblem:
    """What is wrong with the value at a key path (or with the absence of one)."""

    key_path: KeyPath
    message: str


def explain_validation_error(
    err: ValidationError, positions: Mapping[KeyPath, Position], document: type[Section] = JobSpec
) -> list[KeyProblem]:
    """All problems of a template, or of another document; ``positions`` tells keys without a value from absent ones."""
    return [
        _explain(error, positions, document)
        for error in err.errors(include_url=False)
        if error["input"] is not BROKEN  # Its problem is listed already.
    ]


def _explain(error: ErrorDetails, positions: Mapping[KeyPath, Position], document: type[Section]) -> KeyProblem:
    path = _key_path(error["loc"])
    kind = error["type"]
    name = _dotted(path)
    if kind == "missing":
        section = _find_section(path[:-1], document)
        purpose = section.model_fields[str(path[-1])].description if section else None
        state = "is empty" if path in positions else "is missing"
        return KeyProblem(path, f"{name} {state}; it is required: {purpose}")
    if kind == "extra_forbidden":
        return KeyProblem(path, _explain_unknown_key(path, document))
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        section = _find_section(path, document)
        allowed = f"the keys {', '.join(section.model_fields)}" if section else "names and values"
        return KeyProblem(path, f"{name} is {describe_value(error['input'])}; it must be a mapping with {allowed}")
    context: dict[str, Any] = error.get("ctx", {})
    path = (*path, *context.get("keys", ()))
    return KeyProblem(path, f"{_dotted(path)} {context.get('problem') or error['msg']}")


def _explain_unknown_key(path: KeyPath, document: type[Section]) -> str:
    key = str(path[-1])
    section = _find_section(path[:-1], document)
    allowed = list(section.model_fields) if section else []
    where = f" in {_dotted(path[:-1])}" if len(path) > 1 else ""
    hint = suggest_name(key, allowed)
    if not hint:
        homes = [_dotted(home) for home, fields in _walk_sections(document, ()) if home and key in fields]
        hint = f" It belongs in {' or '.join(homes)}." if homes else ""
    return f"unknown key {quote(key)}{where}.{hint} Allowed: {', '.join(allowed)}"


def _key_path(location: tuple[str | int, ...]) -> KeyPath:
    """The location without what pydantic adds for the forms of a command and for the names of a mapping."""
    if location[:3] == _COMMAND and location[3:4] in ((COMMAND_TEXT_TAG,), (COMMAND_STEPS_TAG,)):
        return _COMMAND + location[4:]
    is_name = location[-1:] == ("[key]",) and location[-3:-2] in (("env_var",), ("parameters",))
    return location[:-1] if is_name else location


def _find_section(path: KeyPath, document: type[Section]) -> type[Section] | None:
    return next((section for home, section in _walk_types(document, ()) if home == path), None)


def _walk_sections(section: type[Section], path: KeyPath) -> Iterator[tuple[KeyPath, list[str]]]:
    for home, inner in _walk_types(section, path):
        yield home, list(inner.model_fields)


def _walk_types(section: type[Section], path: KeyPath) -> Iterator[tuple[KeyPath, type[Section]]]:
    yield path, section
    for name, info in section.model_fields.items():
        for inner in _sections_in(info.annotation):
            yield from _walk_types(inner, (*path, name))


def _sections_in(annotation: object) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation  # type: ignore[misc]
    for part in get_args(annotation):
        yield from _sections_in(part)


def _dotted(path: KeyPath) -> str:
    return ".".join(
        str(part) if str(part).isprintable() and len(str(part)) <= 60 else quote(str(part)) for part in path
    )
