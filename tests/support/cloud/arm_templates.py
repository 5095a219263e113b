"""The template language of Azure Resource Manager, as far as the templates of clusters use it.

template = Template(document, {"vmName": "worker"}, group_id, "eastus", look_up)
for resource in template.resources():
    put(resource.id, resource.evaluate())
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_TOKEN = re.compile(r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>\d+)|(?P<word>[A-Za-z_]\w*)|(?P<sign>[()\[\],.]))")
_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "securestring": str,
    "int": int,
    "bool": bool,
    "array": list,
    "object": dict,
    "secureobject": dict,
}
# What describes the resource to the template alone.
_NOT_OF_THE_RESOURCE = frozenset({"condition", "copy", "dependsOn", "apiVersion", "type", "name"})
LookUp = Callable[[str], Mapping[str, Any]]


class TemplateError(Exception):
    """The template, or what it was given, does not hold."""


@dataclass(frozen=True)
class TemplateResource:
    """One resource of a template, at one index where it is made several times; ``evaluate`` gives its document."""

    id: str
    name: str
    type: str
    needs: frozenset[str]
    evaluate: Callable[[], dict[str, Any]]

    def is_needed_by(self, other: TemplateResource) -> bool:
        """Whether ``other`` waits for this one, which its template may name by id or by name."""
        return bool(other.needs & {self.id.lower(), self.name.lower()})


@dataclass
class Template:
    """A template with its parameters, in one resource group.

    Args:
        given: values of parameters; the others have their defaults.
        look_up: properties of a resource that is there, by its id.
    """

    document: Mapping[str, Any]
    given: Mapping[str, Any]
    group_id: str
    location: str
    look_up: LookUp
    _parameters: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        declared = self.document.get("parameters", {})
        unknown = sorted(self.given.keys() - declared.keys())
        if unknown:
            raise TemplateError(
                f"The following parameters were supplied, but do not correspond to any parameters defined in the "
                f"template: '{', '.join(unknown)}'."
            )
        self._parameters = {}
        for name, declaration in declared.items():
            if name in self.given:
                self._parameters[name] = self.given[name]
                if not _has_type(self.given[name], declaration["type"]):
                    raise TemplateError(
                        f"Template parameter '{name}' expected type '{declaration['type']}', "
                        f"but was given {json.dumps(self.given[name])}."
                    )
            elif "defaultValue" in declaration:
                self._parameters[name] = self._evaluate(declaration["defaultValue"], None)
            else:
                raise TemplateError(f"The value for the template parameter '{name}' is not provided.")

    def resources(self) -> list[TemplateResource]:
        """Every resource whose condition holds, each after those that it depends on."""
        waiting = list(self._find_resources())
        ordered: list[TemplateResource] = []
        while waiting:
            ready = [each for each in waiting if not any(other.is_needed_by(each) for other in waiting)]
            if not ready:
                raise TemplateError(f"Circular dependency detected on resource '{waiting[0].id}'.")
            ordered += ready
            waiting = [each for each in waiting if each not in ready]
        return ordered

    def outputs(self) -> dict[str, Any]:
        """What the template says of itself when everything is made."""
        found = {}
        for name, output in self.document.get("outputs", {}).items():
            if not self._evaluate(output.get("condition", True), None):
                continue
            if "copy" in output:
                count = self._evaluate(output["copy"]["count"], None)
                value = [self._evaluate(output["copy"]["input"], index) for index in range(count)]
            else:
                value = self._evaluate(output["value"], None)
            found[name] = {"type": output["type"].capitalize(), "value": value}
        return found

    def _find_resources(self) -> Iterator[TemplateResource]:
        for declaration in self.document["resources"]:
            copied = declaration.get("copy")
            for index in [None] if copied is None else range(self._evaluate(copied["count"], None)):
                if self._evaluate(declaration.get("condition", True), index):
                    yield self._make_resource(declaration, index)

    def _make_resource(self, declaration: Mapping[str, Any], index: int | None) -> TemplateResource:
        name = self._evaluate(declaration["name"], index)
        needs = self._evaluate(declaration.get("dependsOn", []), index)
        content = {key: value for key, value in declaration.items() if key not in _NOT_OF_THE_RESOURCE}
        return TemplateResource(
            id=f"{self.group_id}/providers/{declaration['type']}/{name}",
            name=name,
            type=declaration["type"],
            needs=frozenset(need.lower().replace("//", "/") for need in needs),
            evaluate=lambda: self._evaluate(content, index),
        )

    def _evaluate(self, value: Any, index: int | None) -> Any:
        """A value with its expressions replaced; what comes out as null is left out of objects."""
        if isinstance(value, dict):
            pairs = [(self._evaluate(key, index), self._evaluate(item, index)) for key, item in value.items()]
            return {key: item for key, item in pairs if item is not None}
        if isinstance(value, list):
            return [self._evaluate(item, index) for item in value]
        if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
            return _Expression(value[1:-1], self, index).evaluate()
        return value

    # The functions of the language, by their names in small letters. Those of _LAZY get what they are to evaluate.

    def _call(self, name: str, index: int | None, arguments: list[Callable[[], Any]]) -> Any:
        if name == "if":
            return arguments[1]() if arguments[0]() else arguments[2]()
        values = [argument() for argument in arguments]
        match name:
            case "parameters":
                return _find(self._parameters, values[0])
            case "variables":
                return self._evaluate(_find(self.document["variables"], values[0]), index)
            case "copyindex":
                return index
            case "reference":
                return self.look_up(values[0] if values[0].startswith("/") else self._find_id(values[0]))
            case "resourcegroup":
                return {"id": self.group_id, "location": self.location, "name": self.group_id.split("/")[-1]}
            case "resourceid":
                return self._resource_id(values)
            case "subscriptionresourceid":
                return _join_id(f"{self._subscription_id}/providers", values[0], values[1:])
            case "guid":
                return str(uuid.UUID(hashlib.sha256("-".join(values).encode()).hexdigest()[:32]))
        if name not in _FUNCTIONS:
            raise TemplateError(f"The template function '{name}' is not valid.")
        return _FUNCTIONS[name](*values)

    @property
    def _subscription_id(self) -> str:
        return "/".join(self.group_id.split("/")[:3])

    def _resource_id(self, values: list[str]) -> str:
        """Of ``[group], type, names...``; a type has a slash, and a group's name has none."""
        group_id = self.group_id
        if "/" not in values[0]:
            group_id, values = f"{self._subscription_id}/resourceGroups/{values[0]}", values[1:]
        return _join_id(f"{group_id}/providers", values[0], values[1:])

    def _find_id(self, name: str) -> str:
        """The id of a resource of this template that is referred to by its name alone."""
        return next(resource.id for resource in self._find_resources() if resource.name == name)


class _Expression:
    """One expression, read and evaluated from left to right."""

    def __init__(self, text: str, template: Template, index: int | None) -> None:
        self._text, self._template, self._index = text, template, index
        self._tokens = list(self._split(text))
        self._position = 0

    def evaluate(self) -> Any:
        value = self._read()
        if self._position != len(self._tokens):
            raise TemplateError(f"Unable to parse language expression '{self._text}'.")
        return value()

    def _split(self, text: str) -> Iterator[tuple[str, str]]:
        position = 0
        while position < len(text.rstrip()):
            found = _TOKEN.match(text, position)
            if found is None or found.lastgroup is None:
                raise TemplateError(f"Unable to parse language expression '{text}'.")
            yield found.lastgroup, found[found.lastgroup]
            position = found.end()

    def _peek(self) -> str:
        return self._tokens[self._position][1] if self._position < len(self._tokens) else ""

    def _take(self, *wanted: str) -> tuple[str, str]:
        if self._position == len(self._tokens) or (wanted and self._peek() not in wanted):
            raise TemplateError(f"Unable to parse language expression '{self._text}'.")
        self._position += 1
        return self._tokens[self._position - 1]

    def _read(self) -> Callable[[], Any]:
        kind, text = self._take()
        match kind:
            case "text":
                value = _always(text[1:-1].replace("''", "'"))
            case "number":
                value = _always(int(text))
            case "word":
                value = self._read_call(text.lower())
            case _:
                raise TemplateError(f"Unable to parse language expression '{self._text}'.")
        while self._peek() in (".", "["):
            value = self._read_member(value)
        return value

    def _read_call(self, name: str) -> Callable[[], Any]:
        self._take("(")
        arguments: list[Callable[[], Any]] = []
        while self._peek() != ")":
            arguments.append(self._read())
            if self._peek() != ")":
                self._take(",")
        self._take(")")
        template, index = self._template, self._index
        return lambda: template._call(name, index, arguments)

    def _read_member(self, owner: Callable[[], Any]) -> Callable[[], Any]:
        _, sign = self._take(".", "[")
        if sign == ".":
            key = _always(self._take()[1])
        else:
            key = self._read()
            self._take("]")
        return lambda: owner()[key()]


def _always(value: Any) -> Callable[[], Any]:
    return lambda: value


def _find(named: Mapping[str, Any], name: str) -> Any:
    """Names have no case in the language."""
    for key, value in named.items():
        if key.lower() == name.lower():
            return value
    raise TemplateError(f"The template has nothing called '{name}'.")


def _has_type(value: Any, name: str) -> bool:
    if name.lower() == "int" and isinstance(value, bool):
        return False
    return isinstance(value, _TYPES[name.lower()])


def _join_id(base: str, resource_type: str, names: Iterable[str]) -> str:
    """As in ``BASE/Microsoft.Network/virtualNetworks/NAME/subnets/NAME``."""
    namespace, *kinds = resource_type.strip("/").split("/")
    pairs = [f"{kind}/{name}" for kind, name in zip(kinds, names, strict=True)]
    return "/".join((base, namespace, *pairs))


def _concat(*values: Any) -> Any:
    if isinstance(values[0], list):
        return [item for value in values for item in value]
    return "".join(map(str, values))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "concat": _concat,
    "createarray": lambda *values: list(values),
    "equals": lambda one, other: one == other,
    "greater": lambda one, other: one > other,
    "json": json.loads,
    "length": len,
    "mod": lambda one, other: one % other,
    "not": lambda value: not value,
    "string": str,
}
