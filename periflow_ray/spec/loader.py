"""The one way from the text of a pf-template.yml to a ``JobSpec``: every problem at once, each with its place."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from periflow_ray.errors import TemplateError
from periflow_ray.spec.fields import describe_value, quote, read_names, suggest_name
from periflow_ray.spec.models import JobSpec
from periflow_ray.spec.problems import KeyProblem, explain_validation_error
from periflow_ray.spec.yaml_text import read_document
from periflow_ray.spec.yaml_tree import BROKEN, KeyPath, Position

MAX_LISTED_PROBLEMS = 50


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
    document = read_document(text)
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    overridden_keys = frozenset(given)
    placed = [((p.line, p.column), f"{source}:{p.line}:{p.column}: {p.message}") for p in document.problems]
    if document.value is BROKEN:
        raise _template_error(placed)
    if not isinstance(document.value, dict):
        position = (1, 1) if document.value is None else document.positions[()]
        raise TemplateError(f"{source}:{_format(position)}: {_explain_no_mapping(document.value)}")
    values = {**document.value, **given}
    spec = None
    problems: list[KeyProblem] = []
    try:
        spec = JobSpec.model_validate(values)
    except ValidationError as err:
        problems += explain_validation_error(err, document.positions)
    problems += _check_vm(values.get("vm"), known_vms)
    for problem in problems:
        position, location = _locate(problem.key_path, source, document.positions, overridden_keys)
        placed.append((position, f"{location}: {problem.message}"))
    if placed or spec is None:
        raise _template_error(placed)
    return Template(spec, source, document.positions, overridden_keys)


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


def _explain_no_mapping(value: object) -> str:
    if value is None:
        return "the template is empty; it must hold at least vm, num_devices and job_setting"
    return f"the template is {describe_value(value)}; it must be a mapping with vm, num_devices and job_setting"


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
