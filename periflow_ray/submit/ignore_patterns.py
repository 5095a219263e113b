"""Git's patterns for names, matched in a time that is bounded whatever they are: a cloned repository brings its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

# How pathspec writes '*', and '**' at the beginning and inside, as regular expressions. None of them can come from
# anything else in a pattern: a '/' ends every other part.
_STAR = r"\[\^/\]\*"
_FIRST_DIRECTORIES, _DIRECTORIES = "^(?:.+/)?", "(?:/.+)?"
# An escaped character, '?' or a star, or a class of characters, which in pathspec, and not in git, may hold a '/'.
_CLASS = re.compile(r"\\.|\[\^/\]|(\[\^?\]?[^\]]*\])", re.DOTALL)
# How pathspec says that a path, or a directory above it, may match.
_HERE_OR_ABOVE, _DIRECTORY_HERE_OR_ABOVE = "(?:(?P<ps_d>/)|$)", "(?P<ps_d>/)"
# A star, what follows it, and the next star in the same name.
_STAR_BEFORE_STAR = re.compile(rf"{_STAR}((?:(?!{_STAR})(?:\[\^/\]|[^/]))*)(?={_STAR})")


def parse_rules(lines: Iterable[str]) -> GitIgnoreSpec:
    """The rules of a ``.gitignore``; ``check_file`` gives what they say of one path, and nothing of what is above it.

    A directory's path ends in a slash.

    Raises:
        ValueError: a line is no pattern.
    """
    # Its other backends know no assertions and no references to groups.
    return GitIgnoreSpec.from_lines(lines, pattern_factory=_BoundedPattern, backend="simple")


class _BoundedPattern(GitIgnoreSpecPattern):
    __slots__ = ()

    @classmethod
    def pattern_to_regex(cls, pattern: Any) -> tuple[Any, bool | None]:
        if pattern.endswith("/**/"):
            # Directories below, which pathspec takes for the one above.
            pattern = f"{pattern}*/"
        regex, includes = super().pattern_to_regex(pattern)
        return (_end_at_the_path(without_backtracking(regex)) if isinstance(regex, str) else regex), includes


def _end_at_the_path(regex: str) -> str:
    """Without what is below a directory that matches, which git decides by itself: it may match another rule."""
    for as_pathspec, as_git in ((_HERE_OR_ABOVE, "/?$"), (_DIRECTORY_HERE_OR_ABOVE, "/$")):
        if regex.endswith(as_pathspec):
            return regex.removesuffix(as_pathspec) + as_git
    return f"{regex}." if regex.endswith("/") else regex


def without_backtracking(regex: str) -> str:
    """A pattern's expression that matches the same, as git does, without trying every way to do so.

    Between two stars, and between two ``**``, the first place where the part between them fits is as good as any: it
    leaves the most to what follows. With 12 stars there are billions of others.
    """
    # Written without a '/', which is what ends a part.
    regex = _CLASS.sub(lambda found: _rewrite_class(found[1]) if found[1] else found[0], regex)
    numbers = count()
    regex = _STAR_BEFORE_STAR.sub(lambda found: _atomic(f"[^/]*?{found[1]}", numbers), regex)
    first, *middle = regex.split(_DIRECTORIES)
    if not middle:
        return regex
    last = middle.pop()
    if first.startswith(_FIRST_DIRECTORIES):
        first = f"^{_atomic(f'(?:.+?/)??{first.removeprefix(_FIRST_DIRECTORIES)}(?=/)', numbers)}"
    return "".join([first, *(_atomic(f"(?:/.+?)??{part}(?=/)", numbers) for part in middle), _DIRECTORIES, last])


def _atomic(regex: str, numbers: Iterator[int]) -> str:
    """An expression that matches in its first way or not at all: Python 3.10 has no atomic groups."""
    name = f"atomic{next(numbers)}"
    return f"(?=(?P<{name}>{regex}))(?P={name})"


def _rewrite_class(text: str) -> str:
    inner = text[1:-1].replace("[", r"\[")
    return rf"(?!\x2f)[{inner}]"
