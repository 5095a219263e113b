"""From the text of a template to plain values with their positions, without trusting the text.

Nothing is constructed from tags, and size, depth and the number of values (aliases expanded) are limited, so that
no text can run code, exhaust memory or raise anything but listed problems.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import yaml

from periflow_ray.spec.yaml_tree import BROKEN, TOO_DEEP, Composer, KeyPath, Position, UnreadableError, YamlProblem

MAX_TEMPLATE_BYTES = 1 << 20

# What YAML's reader refuses, found first so that the position and the character can be named.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_END_BACKSLASH = re.compile(r"(?<!\\)(?:\\\\)*\\(?=[ \t]*(?:\r|\n|\Z))")
_PRIVATE_USE = range(0xE000, 0xF8FF)


@dataclass(frozen=True)
class Document:
    """A template's values (``BROKEN`` when they could not be read), where their keys stand, and what is wrong."""

    value: object
    positions: dict[KeyPath, Position] = field(default_factory=dict)
    problems: tuple[YamlProblem, ...] = ()


def read_document(text: str | bytes) -> Document:
    """Read one YAML document.

    Args:
        text: at most 1 MiB; bytes are UTF-8.
    Returns:
        Mappings and lists are dicts and lists, unquoted numbers, booleans and dates are ``PlainScalar``. Positions
        are (line, column) from 1; the position of a key path is that of its key.
    """
    if len(text) > MAX_TEMPLATE_BYTES:
        size_mib = len(text) / MAX_TEMPLATE_BYTES
        return _unreadable(f"the template is {size_mib:.1f} MiB large; at most 1 MiB is allowed. Is it the right file?")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as err:
            # Latin-1 keeps one character a byte, so the position counts bytes.
            position = _find_position(err.object.decode("latin-1"), err.start)
            return _unreadable(
                f"byte 0x{err.object[err.start]:02x} is not UTF-8 text; save the file as UTF-8", position
            )
    text = text.removeprefix("\ufeff")
    unprintable = _UNPRINTABLE.search(text)
    if unprintable:
        return _unreadable(
            f"control character U+{ord(unprintable[0]):04X} is not allowed in YAML; remove it",
            _find_position(text, unprintable.start()),
        )
    composer = Composer(text)
    document = _compose(text, composer)
    # Lines of a folded or multi-line scalar are joined before bash could see that they end in a backslash, so those
    # backslashes are marked and the text is read again.
    lines_to_mark = [
        match.end() for start, end in composer.folded_spans for match in _LINE_END_BACKSLASH.finditer(text, start, end)
    ]
    if document.value is BROKEN or not lines_to_mark:
        return document
    marker = next(chr(code) for code in _PRIVATE_USE if chr(code) not in text)
    marked_text = marker.join(text[i:j] for i, j in zip([0, *lines_to_mark], [*lines_to_mark, None], strict=True))
    return _compose(marked_text, Composer(marked_text, marker))


def _compose(text: str, composer: Composer) -> Document:
    try:
        value = composer.read()
    except UnreadableError:
        value = BROKEN
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        composer.problems.append(YamlProblem(line, column, _explain_syntax_error(err, text, line, column)))
        value = BROKEN
    except (yaml.YAMLError, ValueError, OverflowError) as err:
        # The pure Python scanner lets some escapes and directives end in ValueError.
        first_line = (str(err).splitlines() or [type(err).__name__])[0]
        composer.problems.append(YamlProblem(1, 1, f"not valid YAML: {first_line}"))
        value = BROKEN
    return Document(value, composer.positions, tuple(dict.fromkeys(composer.problems)))


def _explain_syntax_error(err: yaml.MarkedYAMLError, text: str, line: int, column: int) -> str:
    lines = re.split(r"\r\n|\r|\n", text)
    given = lines[line - 1] if line <= len(lines) else ""
    indentation = given[: len(given) - len(given.lstrip())]
    if "\t" in indentation or given[column - 1 : column] == "\t":
        return "a tab stands where YAML wants spaces; indent with spaces only"
    problem = err.problem or err.context or "it cannot be read"
    if "maximum nesting depth" in problem:
        # Newer versions of libyaml have a limit of their own.
        return TOO_DEEP
    if "mapping values are not allowed" in problem:
        return f"not valid YAML: {problem}; put text that contains ': ' in quotes, or correct the indentation"
    if "cannot start any token" in problem:
        return f"not valid YAML: {given[column - 1 : column]!r} cannot start a value; put the value in quotes"
    if "expected <block end>" in problem or "did not find expected key" in problem:
        return f"not valid YAML: {problem}; correct the indentation or the quotes of this line or the one before"
    return f"not valid YAML: {problem}" + (f" ({err.context})" if err.context and err.problem else "")


def _find_position(text: str, offset: int) -> Position:
    return text.count("\n", 0, offset) + 1, offset - (text.rfind("\n", 0, offset) + 1) + 1


def _unreadable(problem: str, position: Position = (1, 1)) -> Document:
    return Document(BROKEN, problems=(YamlProblem(*position, problem),))
