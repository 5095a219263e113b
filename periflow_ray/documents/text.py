"""The text of documents: parsed tolerantly, dumped with its format. Pure."""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from periflow_ray import __version__
from periflow_ray.documents.fields import build, build_all, name_type
from periflow_ray.errors import DamagedDocumentError, NewerFormatError
from periflow_ray.finite_json import dump_json, restore_numbers

FORMAT_FIELD = "format"
SINCE_FIELD = "format_since"
# Values of a script, by name.
METRICS_FIELD = "metrics"
ADVICE = "Put a copy of it back, or delete it."
_MAX_PROBLEMS = 3
# What pydantic calls a field that it does not know, in a model and in a dataclass.
_UNKNOWN_FIELD = ("extra_forbidden", "unexpected_keyword_argument")

Document = TypeVar("Document")


def parse_document(kind: type[Document], content: bytes, where: str, *, advice: str = ADVICE) -> Document:
    """A document from its stored text.

    Args:
        kind: a dataclass, or a pydantic model.
        where: how messages name the document.
        advice: what to do about a damaged one.
    Raises:
        DamagedDocumentError: it is no JSON object, or lacks a field.
        NewerFormatError: a later version wrote it, in a format that this one does not know.
    """
    fields = parse_fields(content, where, kind=kind, advice=advice)
    if isinstance(metrics := fields.get(METRICS_FIELD), dict):
        fields[METRICS_FIELD] = restore_numbers(metrics)
    if hasattr(kind, "model_validate_json"):
        return cast(Document, _validate(kind, fields, where, advice))
    problems: list[str] = []
    document = build(kind, fields, "", problems)
    if problems:
        raise _describe_damage(where, _join(problems), advice)
    return cast(Document, document)


def parse_entries(kind: type[Document], content: bytes, where: str, *, advice: str = ADVICE) -> tuple[Document, ...]:
    """The entries of a document that is a list.

    Raises:
        DamagedDocumentError, NewerFormatError: see ``parse_document``.
    """
    entries = _parse_json(content, where, advice)
    check_format(entries, where)
    problems: list[str] = []
    built = build_all(kind, entries, "", problems)
    if problems:
        raise _describe_damage(where, _join(problems), advice)
    return cast("tuple[Document, ...]", built)


def parse_fields(content: bytes, where: str, *, kind: type | None = None, advice: str = ADVICE) -> dict[str, Any]:
    """All fields of a document but its format, which is checked.

    Args:
        kind: whose format; None for documents that have no kind of their own.
    Raises:
        DamagedDocumentError: it is no JSON object.
        NewerFormatError: see ``parse_document``.
    """
    fields = _parse_json(content, where, advice)
    if not isinstance(fields, dict):
        raise _describe_damage(where, f"it is {name_type(fields)}, not a JSON object", advice)
    check_format(fields, where, kind=kind, advice=advice)
    return {name: value for name, value in fields.items() if name not in (FORMAT_FIELD, SINCE_FIELD)}


def check_format(document: Any, where: str, *, kind: type | None = None, advice: str = ADVICE) -> None:
    """Refuse a parsed document of a format that this version does not know.

    Raises:
        DamagedDocumentError: its format is not a number.
        NewerFormatError: it is too new.
    """
    if not isinstance(document, dict):
        return
    number, known = document.get(FORMAT_FIELD, 1), format_of(kind)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise _describe_damage(where, f"its format is {number!r}, not a number from 1 on", advice)
    if number > known:
        formats = "format 1" if known == 1 else f"formats 1 to {known}"
        since = document.get(SINCE_FIELD)
        reader = f"Version {since} or later" if isinstance(since, str) else "A later version"
        raise NewerFormatError(
            f"{where} has format {number}, and this version of periflow-ray ({__version__}) reads {formats}. "
            f"{reader} reads it: pip install --upgrade periflow-ray"
        )


def dump_document(document: Any, *, kind: type | None = None, indent: int | None = 1) -> bytes:
    """A document's stored text.

    Args:
        document: a dataclass, a pydantic model, or fields of ``kind``.
        indent: None for one line, with no newline at its end.
    """
    kind = kind or type(document)
    head: dict[str, Any] = {FORMAT_FIELD: format_of(kind)}
    if format_of(kind) > 1:
        head[SINCE_FIELD] = cast(Any, kind).FORMAT_SINCE
    return dump_json({**head, **_fields_of(document)}, indent=indent).encode()


def format_of(kind: type | None) -> int:
    """The number of a kind's format."""
    return cast(int, getattr(kind, "FORMAT", 1))


def _fields_of(document: Any) -> dict[str, Any]:
    if isinstance(document, Mapping):
        return dict(document)
    if dataclasses.is_dataclass(document) and not isinstance(document, type):
        return dataclasses.asdict(document)
    fields: dict[str, Any] = document.model_dump(mode="json")
    return fields


def _parse_json(content: bytes, where: str, advice: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as err:
        raise _describe_damage(where, str(err), advice) from err


def _validate(kind: Any, fields: dict[str, Any], where: str, advice: str) -> Any:
    """A pydantic model; fields that it refuses because it does not know them are left out."""
    while True:
        try:
            return kind.model_validate_json(json.dumps(fields))
        # Pydantic's own error, by the base of it: most commands never import pydantic.
        except ValueError as err:
            found = cast(Any, err).errors()
            unknown = [problem["loc"] for problem in found if problem["type"] in _UNKNOWN_FIELD]
            if not unknown:
                raise _describe_damage(where, _join([_describe_problem(problem) for problem in found]), advice) from err
        for *path, name in unknown:
            del functools.reduce(operator.getitem, path, cast(Any, fields))[name]


def _describe_problem(problem: Mapping[str, Any]) -> str:
    name = ".".join(map(str, problem["loc"]))
    return f"it has no '{name}'" if problem["type"] == "missing" else f"'{name}': {problem['msg']}"


def _describe_damage(where: str, reason: str, advice: str) -> DamagedDocumentError:
    text = f"{where} is damaged: {reason}"
    return DamagedDocumentError(f"{text}. {advice}" if advice else text)


def _join(problems: Sequence[str]) -> str:
    more = len(problems) - _MAX_PROBLEMS
    return ", ".join(problems[:_MAX_PROBLEMS]) + (f", and {more} more" if more > 0 else "")
