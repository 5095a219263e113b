"""Files of variables, ``NAME=value`` a line, as python-dotenv reads them.

``export`` may stand before a name, and blanks around ``=``. A value in quotes may have several lines; in double quotes
a backslash begins an escape as in most languages, in single quotes only before a quote or a backslash. Without quotes
a value ends where a blank and ``#`` begin a comment. ``$NAME`` in a value stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from periflow_ray.errors import UsageError

_BLANKS = re.compile(r"[^\S\n]*")
_NAME = re.compile(r"(?:export[^\S\n]+)?([^=#\n]*)")
_SINGLE_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'", re.DOTALL)
_DOUBLE_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_UNQUOTED = re.compile(r"(?:(?!(?<=\s)#)[^\n])*")
_LINE_END = re.compile(r"[^\S\n]*(?:#[^\n]*)?(?:\n|$)")
_SINGLE_ESCAPE = re.compile(r"\\([\\'])")
_DOUBLE_ESCAPE = re.compile(r"\\([\\'\"abfnrtv])")
_CONTROLS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def parse_assignments(text: str, where: str) -> Iterator[tuple[int, str, str | None]]:
    """Line number, name and value of each variable of a file; the value is None in a line without ``=``.

    Args:
        where: name of the file, for messages.
    Raises:
        UsageError: a quote does not end, or something comes after it; nothing of a value is in the message.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    at = 0
    while at < len(text):
        number = text.count("\n", 0, at) + 1
        begin = _skip(_BLANKS, text, at)
        found = _NAME.match(text, begin)
        assert found is not None  # It may be empty.
        name, at, value = found[1].strip(), found.end(), None
        if text.startswith("=", at):
            value, at = _parse_value(text, _skip(_BLANKS, text, at + 1), f"{where}:{number}")
        at = _skip(_LINE_END, text, at)
        if name or value is not None:
            yield number, name, value


def _parse_value(text: str, at: int, where: str) -> tuple[str, int]:
    """A value, and where the line goes on after it."""
    if not text.startswith(("'", '"'), at):
        found = _UNQUOTED.match(text, at)
        assert found is not None  # It may be empty.
        return found[0].rstrip(), found.end()
    is_single = text[at] == "'"
    quoted = (_SINGLE_QUOTED if is_single else _DOUBLE_QUOTED).match(text, at)
    if quoted is None:
        raise UsageError(f"{where}: the value begins with {text[at]} and has no {text[at]} at its end. Close it.")
    if _LINE_END.match(text, quoted.end()) is None:
        raise UsageError(
            f"{where}: something follows the value's last {text[at]}. Put the whole value into quotes, and write a "
            f"{text[at]} in it as \\{text[at]}."
        )
    if is_single:
        return _SINGLE_ESCAPE.sub(r"\1", quoted[1]), quoted.end()
    return _DOUBLE_ESCAPE.sub(lambda escape: _CONTROLS.get(escape[1], escape[1]), quoted[1]), quoted.end()


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()
