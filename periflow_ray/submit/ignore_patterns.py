"""Git's patterns for names, matched in a time that is bounded whatever they are: a cloned repository brings its own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

# How pathspec writes '*', and '**' at the beginning and inside, as regular expressions. None of them can come from
# anything else in a pattern: a '/' ends every other part.
_STAR = r"\[\^/\]\*"
_FIRST_DIRECTORIES, _DIRECTORIES = "^(?:.+/)?", "(?:/.+)?"
# An escaped character, '?' or a star, or a class of characters, which in pathspec, and not in git, may hold a '/'.
_CLASS = re.compile(r"\\.|\[\^/\]|(\[\^?\]?[^\]]*\])", re.DOTALL)
# A star, what follows it, and the next star in the same name.
_STAR_BEFORE_STAR = re.compile(rf"{_STAR}((?:(?!{_STAR})(?:\[\^/\]|[^/]))*)(?={_STAR})")


def parse_rules(lines: Iterable[str]) -> GitIgnoreSpec:
    """The rules of a ``.gitignore``.

    Raises:
        ValueError: a line is no pattern.
    """
    # Its other backends do not know atomic groups.
    return GitIgnoreSpec.from_lines(lines, pattern_factory=_BoundedPattern, backend="simple")


class _BoundedPattern(GitIgnoreSpecPattern):
    __slots__ = ()

    @classmethod
    def pattern_to_regex(cls, pattern: Any) -> tuple[Any, bool | None]:
        regex, includes = super().pattern_to_regex(pattern)
        return (without_backtracking(regex) if isinstance(regex, str) else regex), includes


def without_backtracking(regex: str) -> str:
    """A pattern's expression that matches the same, as git does, without trying every way to do so.

    Between two stars, and between two ``**``, the first place where the part between them fits is as good as any: it
    leaves the most to what follows. With 12 stars there are billions of others.
    """
    # Written without a '/', which is what ends a part.
    regex = _CLASS.sub(lambda found: _rewrite_class(found[1]) if found[1] else found[0], regex)
    regex = _STAR_BEFORE_STAR.sub(r"(?>[^/]*?\1)", regex)
    first, *middle = regex.split(_DIRECTORIES)
    if not middle:
        return regex
    last = middle.pop()
    if first.startswith(_FIRST_DIRECTORIES):
        first = f"^(?>(?:.+?/)??{first.removeprefix(_FIRST_DIRECTORIES)}(?=/))"
    return "".join([first, *(f"(?>(?:/.+?)??{part}(?=/))" for part in middle), _DIRECTORIES, last])


def _rewrite_class(text: str) -> str:
    inner = text[1:-1].replace("[", r"\[")
    return rf"(?!\x2f)[{inner}]"
