"""YAML events to plain values: anchors, merge keys, duplicate keys, tags, and the limits on all of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import yaml

from periflow_ray.spec.fields import FoldedText, PlainScalar, quote

KeyPath = tuple[str | int, ...]
Position = tuple[int, int]

# A full template has some 40 values on 5 levels; aliases count each time they are used.
MAX_VALUES = 10_000
MAX_DEPTH = 32
TOO_DEEP = f"values are nested deeper than {MAX_DEPTH} levels; a template needs 5"

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_SCALAR_KINDS = {"int": "number", "float": "number", "bool": "boolean", "timestamp": "date"}
_PLAIN_STYLES = (None, "")


class UnreadableError(Exception):
    """Reading stopped; the reason is the last of ``Composer.problems``."""


@dataclass(frozen=True)
class YamlProblem:
    """What is wrong at a line and column, both counted from 1."""

    line: int
    column: int
    message: str


class _Broken:
    """Stands for a value that could not be read and whose problem is already listed."""


BROKEN: Final = _Broken()


@dataclass(frozen=True)
class _Node:
    """A value with its place; aliases share nodes. ``num_values`` and ``height`` count what is below, expanded."""

    line: int
    column: int
    content: Any
    key_text: str | None = None
    is_merge: bool = False
    num_values: int = 1
    height: int = 1


class Composer:
    """Reads one YAML document into plain values.

    Args:
        text: printable text without byte order mark.
        marker: a character that follows each backslash at the end of a line, where lines are joined.
    """

    def __init__(self, text: str, marker: str | None = None) -> None:
        self.problems: list[YamlProblem] = []
        self.positions: dict[KeyPath, Position] = {}
        # Where scalars whose lines YAML joins stand in the text, as character offsets.
        self.folded_spans: list[tuple[int, int]] = []
        self._marker = marker
        self._events = yaml.parse(text, Loader=_LOADER)
        self._anchors: dict[str, _Node] = {}
        self._open_anchors: set[str] = set()

    def read(self) -> object:
        """The document's value.

        Raises:
            UnreadableError: a limit is exceeded, an alias is wrong, or there is not exactly one document.
            yaml.YAMLError: the text is not YAML.
        """
        root = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    self._stop(event, "a second document starts here; a template is one document: remove the '---'")
                root = self._compose(next(self._events), 1)
        if root is None:
            return None
        self.positions[()] = (root.line, root.column)
        return self._build(root, ())

    def _compose(self, event: yaml.Event, depth: int) -> _Node:
        if isinstance(event, yaml.AliasEvent):
            return self._find_alias(event, depth)
        if depth > MAX_DEPTH:
            self._stop(event, TOO_DEEP)
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            self._open_anchors.add(anchor)
        if isinstance(event, yaml.ScalarEvent):
            node = self._compose_scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._compose_list(event, depth)
        else:
            assert isinstance(event, yaml.MappingStartEvent)
            node = self._compose_mapping(event, depth)
        if anchor is not None:
            self._open_anchors.discard(anchor)
            self._anchors[anchor] = node
        return node

    def _find_alias(self, event: yaml.AliasEvent, depth: int) -> _Node:
        name = event.anchor
        if name in self._open_anchors:
            self._stop(event, f"alias *{name} stands inside the value that it refers to; repeat the value instead")
        if name not in self._anchors:
            self._stop(event, f"alias *{name} refers to nothing; define &{name} before it, or put the text in quotes")
        node = self._anchors[name]
        if depth + node.height - 1 > MAX_DEPTH:
            self._stop(event, f"alias *{name} nests values deeper than {MAX_DEPTH} levels; a template needs 5")
        return _Node(*_place(event), node.content, node.key_text, node.is_merge, node.num_values, node.height)

    def _compose_scalar(self, event: yaml.ScalarEvent) -> _Node:
        text = event.value
        tag = event.tag
        if tag is None and event.style in _PLAIN_STYLES:
            tag = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        elif tag in (None, "!"):
            tag = _TAG + "str"
        content: object = text
        kind = tag.removeprefix(_TAG)
        if kind == "null":
            content = None
        elif kind in _SCALAR_KINDS:
            content = PlainScalar(text, _SCALAR_KINDS[kind])  # type: ignore[arg-type]
        elif kind in ("str", "value", "merge"):
            content = self._join_lines(event)
        else:
            content = self._refuse_tag(event)
        start, end = event.start_mark, event.end_mark
        if event.style not in ('"', "|") and start and end and end.line > start.line:
            self.folded_spans.append((start.index, end.index))
        key_text = text.replace(self._marker, "") if self._marker else text
        return _Node(*_place(event), content, key_text, is_merge=kind == "merge")

    def _join_lines(self, event: yaml.ScalarEvent) -> str:
        text: str = event.value
        if self._marker is None or self._marker not in text:
            return text
        shell_text = re.sub(rf"\\{self._marker}[ \t]*(?:\n| |\Z)", r"\\" + "\n", text)
        return FoldedText(text.replace(self._marker, ""), shell_text)

    def _compose_list(self, event: yaml.SequenceStartEvent, depth: int) -> _Node:
        items: list[_Node] = []
        num_values = 1
        while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
            items.append(self._compose(inner, depth + 1))
            num_values = self._add_values(inner, num_values, items[-1])
        content = items if event.tag in (None, "!", _TAG + "seq") else self._refuse_tag(event)
        height = 1 + max((item.height for item in items), default=0)
        return _Node(*_place(event), content, num_values=num_values, height=height)

    def _compose_mapping(self, event: yaml.MappingStartEvent, depth: int) -> _Node:
        entries: list[tuple[_Node, _Node]] = []
        num_values = height = 1
        while not isinstance(inner := next(self._events), yaml.MappingEndEvent):
            key = self._compose(inner, depth + 1)
            value = self._compose(next(self._events), depth + 1)
            entries.append((key, value))
            num_values = self._add_values(inner, self._add_values(inner, num_values, key), value)
            height = max(height, 1 + key.height, 1 + value.height)
        content = dict(enumerate(entries)) if event.tag in (None, "!", _TAG + "map") else self._refuse_tag(event)
        return _Node(*_place(event), content, num_values=num_values, height=height)

    def _add_values(self, event: yaml.Event, num_values: int, node: _Node) -> int:
        num_values += node.num_values
        if num_values > MAX_VALUES:
            self._stop(
                event, f"the template holds more than {MAX_VALUES} values (aliases count as what they stand for)"
            )
        return num_values

    def _refuse_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> _Broken:
        tag = quote(re.sub(f"^{_TAG}", "!!", event.tag or ""))
        self._add(*_place(event), f"tag {tag} is not allowed: a template holds plain values only; remove the tag")
        return BROKEN

    def _build(self, node: _Node, path: KeyPath) -> object:
        if isinstance(node.content, list):
            items = []
            for index, item in enumerate(node.content):
                item_path = (*path, index)
                self.positions[item_path] = (item.line, item.column)
                items.append(self._build(item, item_path))
            return items
        if isinstance(node.content, dict):
            return self._build_mapping(node, path)
        return node.content

    def _build_mapping(self, node: _Node, path: KeyPath) -> dict[str, object]:
        values: dict[str, object] = {}
        for key, (key_node, value_node) in self._own_entries(node).items():
            value_path = (*path, key)
            self.positions[value_path] = (key_node.line, key_node.column)
            values[key] = self._build(value_node, value_path)
        return values

    def _own_entries(self, node: _Node) -> dict[str, tuple[_Node, _Node]]:
        """Keys with key node and value node; keys of merged mappings (``<<``) come after and never replace one."""
        entries: dict[str, tuple[_Node, _Node]] = {}
        merged: list[_Node] = []
        for key_node, value_node in node.content.values():
            key = key_node.key_text
            if key_node.is_merge:
                merged += value_node.content if isinstance(value_node.content, list) else [value_node]
            elif key is None or key_node.content is BROKEN:
                self._add(
                    key_node.line, key_node.column, "a list, a mapping or a tagged value cannot be a key; use a name"
                )
            elif not key and key_node.content is None:
                self._add(key_node.line, key_node.column, "there is no key before ':'; write 'key: value'")
            elif key in entries:
                first_line = entries[key][0].line
                self._add(
                    key_node.line,
                    key_node.column,
                    f"key {quote(key)} is given twice, first on line {first_line}; keep one of them",
                )
            else:
                entries[key] = (key_node, value_node)
        for mapping in merged:
            if isinstance(mapping.content, dict):
                entries = {**self._own_entries(mapping), **entries}
            elif mapping.content is not BROKEN:
                self._add(mapping.line, mapping.column, "'<<' merges mappings only; give it an alias of a mapping")
        return entries

    def _add(self, line: int, column: int, message: str) -> None:
        self.problems.append(YamlProblem(line, column, message))

    def _stop(self, event: yaml.Event, message: str) -> NoReturn:
        self._add(*_place(event), message)
        raise UnreadableError


def _place(event: yaml.Event) -> Position:
    mark = event.start_mark
    assert mark is not None  # Events of a parser have marks; only hand-made ones lack them.
    return mark.line + 1, mark.column + 1


_RESOLVER = yaml.resolver.Resolver()
