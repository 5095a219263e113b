"""The one way from the text of a pf-template.yml or of a sweep's file to its model: every problem, with its place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from periflow_ray.errors import TemplateError
from periflow_ray.spec.fields import describe_value, quote, read_names, suggest_name
from periflow_ray.spec.models import JobSpec
from periflow_ray.spec.problems import KeyProblem, explain_validation_error
from periflow_ray.spec.section import Section
from periflow_ray.spec.sweep import SweepSpec
from periflow_ray.spec.yaml_text import read_document
from periflow_ray.spec.yaml_tree import BROKEN, KeyPath, Position

MAX_LISTED_PROBLEMS = 50
_Model = TypeVar("_Model", bound=Section)


@dataclass(frozen=True)
class Template:
    """A valid template and where its keys stand.

    Args:
        spec: what the user asked for, command line options applied.
        source: name of the file, for messages.
        positions: (line, column), both from 1, of each key path in the file.
        overridden_keys: top-level keys whose value came from a command line option.
    """

    spec: JobSpec
    source: str
    positions: Mapping[KeyPath, Position]
    overridden_keys: frozenset[str] = frozenset()

    def locate(self, key_path: KeyPath) -> str:
        """``file:line:column`` of a key or of its nearest ancestor in the file, or the option that set it."""
        return _locate(tuple(key_path), self.source, self.positions, self.overridden_keys)[1]


def load_template(
    text: str | bytes,
    *,
    source: str = "pf-template.yml",
    overrides: Mapping[str, object] | None = None,
    known_vms: Collection[str] | None = None,
) -> Template:
    """Read and check a template.

    Args:
        text: the file's content, at most 1 MiB; bytes are UTF-8.
        source: name of the file, for messages.
        overrides: top-level keys given as command line options; None values are ignored.
        known_vms: names that ``vm`` may have; None accepts any.
    Raises:
        TemplateError: one line ``file:line:column: problem`` for each problem; ``--option: problem`` where the
            value came from the command line.
    """
    given = {key: value for key, value in (overrides or {}).items() if value is not None}

    def check(values: Mapping[str, Any]) -> list[KeyProblem]:
        return _check_vm(values.get("vm"), known_vms)

    spec, positions = _load(text, source, JobSpec, "the template", given, check)
    return Template(spec, source, positions, frozenset(given))


def load_sweep(text: str | bytes, *, source: str = "sweep.yml") -> SweepSpec:
    """Read and check a sweep's file.

    Args:
        text: the file's content, at most 1 MiB; bytes are UTF-8.
        source: name of the file, for messages.
    Raises:
        TemplateError: one line ``file:line:column: problem`` for each problem.
    """
    return _load(text, source, SweepSpec, "the sweep", {}, lambda values: [])[0]


def _load(
    text: str | bytes,
    source: str,
    model: type[_Model],
    title: str,
    given: Mapping[str, object],
    check: Callable[[Mapping[str, Any]], list[KeyProblem]],
) -> tuple[_Model, Mapping[KeyPath, Position]]:
    document = read_document(text)
    overridden_keys = frozenset(given)
    placed = [((p.line, p.column), f"{source}:{p.line}:{p.column}: {p.message}") for p in document.problems]
    if document.value is BROKEN:
        raise _template_error(placed)
    if not isinstance(document.value, dict):
        position = (1, 1) if document.value is None else document.positions[()]
        required = [name for name, field in model.model_fields.items() if field.is_required()]
        what = f"{title} {_explain_no_mapping(document.value, required)}"
        raise TemplateError(f"{source}:{_format(position)}: {what}")
    values = {**document.value, **given}
    spec = None
    problems: list[KeyProblem] = []
    try:
        spec = model.model_validate(values)
    except ValidationError as err:
        problems += explain_validation_error(err, document.positions, model)
    problems += check(values)
    for problem in problems:
        position, location = _locate(problem.key_path, source, document.positions, overridden_keys)
        placed.append((position, f"{location}: {problem.message}"))
    if placed or spec is None:
        raise _template_error(placed)
    return spec, document.positions


def _check_vm(given: object, known_vms: Collection[str] | None) -> list[KeyProblem]:
    if known_vms is None:
        return []
    try:
        names = read_names(given)
    except PydanticCustomError:  # Listed by the validation already.
        return []
    problems = []
    for index, vm in enumerate(names):
        if vm not in known_vms:
            text = f"vm {quote(vm)} is not in the catalogue.{suggest_name(vm, list(known_vms))}"
            key_path: KeyPath = ("vm", index) if isinstance(given, (list, tuple)) else ("vm",)
            problems.append(KeyProblem(key_path, f"{text} List all: periflow-ray vm list"))
    return problems


def _explain_no_mapping(value: object, required: Sequence[str]) -> str:
    names = f"{', '.join(required[:-1])} and {required[-1]}"
    if value is None:
        return f"is empty; it must hold at least {names}"
    return f"is {describe_value(value)}; it must be a mapping with {names}"


def _locate(
    key_path: KeyPath, source: str, positions: Mapping[KeyPath, Position], overridden_keys: frozenset[str]
) -> tuple[Position, str]:
    if key_path and key_path[0] in overridden_keys:
        return (0, 0), "--" + str(key_path[0]).replace("_", "-")
    while key_path and key_path not in positions:
        key_path = key_path[:-1]
    position = positions.get(key_path, (1, 1))
    return position, f"{source}:{_format(position)}"


def _format(position: Position) -> str:
    return f"{position[0]}:{position[1]}"


def _template_error(placed: list[tuple[Position, str]]) -> TemplateError:
    lines = list(dict.fromkeys(line for _, line in sorted(placed)))
    num_unlisted = len(lines) - MAX_LISTED_PROBLEMS
    if num_unlisted > 0:
        lines = [*lines[:MAX_LISTED_PROBLEMS], f"... and {num_unlisted} more problems"]
    return TemplateError("\n".join(lines))
