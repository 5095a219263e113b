"""What pip's requirement files ask for: read with the files that they include, and checked line by line. Pure."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from packaging.requirements import InvalidRequirement, Requirement

from periflow_ray.names import suggest_names
from periflow_ray.secret_mask import hide_logins

_COMMENT = re.compile(r"(^|\s+)#.*$")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|file:")
_ARCHIVE = re.compile(r"\.(whl|zip|tar\.gz|tgz|tar\.bz2|tar\.xz)$", re.IGNORECASE)
# What a requirement may have behind it: --hash=..., --config-settings=...
_OWN_OPTIONS = re.compile(r"\s+--?[A-Za-z]")
_INCLUDES = {"-r": "-r", "--requirement": "-r", "-c": "-c", "--constraint": "-c"}
_EDITABLES = ("-e", "--editable")
_WITH_VALUE = (
    "-i",
    "--index-url",
    "--extra-index-url",
    "-f",
    "--find-links",
    "--no-binary",
    "--only-binary",
    "--trusted-host",
    "--use-feature",
)
_FLAGS = ("--no-index", "--prefer-binary", "--require-hashes", "--pre")
_OPTIONS = (*_INCLUDES, *_EDITABLES, *_WITH_VALUE, *_FLAGS)
_MAX_DEPTH = 50
OWN_LAYER_ADVICE = "put 'pip install' of it into docker.command, which installs for this job alone"


@dataclass
class Requirements:
    """What requirement files ask for.

    Args:
        lines: every line that counts, as ``-r``, ``-c`` and requirements appear, without comments.
        names: of the packages that are asked for, where a line says one.
        local_paths: files of the workspace that are asked for, or that options name.
        problems: what cannot be read, as ``requirements.txt:3: ...``.
    """

    lines: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    local_paths: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_requirements(path: str, read: Callable[[str], str]) -> Requirements:
    """Read a requirement file and all that it includes.

    Args:
        path: relative to the workspace.
        read: gives the text of such a path. Raises OSError or UnicodeDecodeError.
    """
    found = Requirements()
    _read_file(path, read, found, included_from="", parents=(), is_constraint=False)
    return found


def describe_bad_requirement(text: str) -> str | None:
    """Why a text is no requirement that jobs may share an environment with; None if it is one."""
    text = text.strip()
    if text.startswith("-"):
        return "is an option; it must be a package, such as 'numpy>=1.26'"
    text = _OWN_OPTIONS.split(text, maxsplit=1)[0]
    if _URL.match(text) or _is_archive(text):
        return None
    if text.startswith((".", "/", "~")) or ("/" in text and "@" not in text):
        return f"is a directory, of which jobs cannot share an environment; {OWN_LAYER_ADVICE}"
    try:
        Requirement(text)
    except InvalidRequirement as err:
        return f"is no requirement such as 'numpy>=1.26': {str(err).splitlines()[0]}"
    return None


def name_of(text: str) -> str | None:
    """The package that a requirement names; None where it is an address or a file."""
    try:
        return Requirement(_OWN_OPTIONS.split(text.strip(), maxsplit=1)[0]).name
    except InvalidRequirement:
        return None


def _read_file(
    path: str,
    read: Callable[[str], str],
    found: Requirements,
    *,
    included_from: str,
    parents: tuple[str, ...],
    is_constraint: bool,
) -> None:
    where = f"{included_from}: " if included_from else ""
    if path in parents:
        found.problems.append(f"{where}'{path}' includes itself")
        return
    if path.startswith(("/", "../")) or path == ".." or len(parents) > _MAX_DEPTH:
        found.problems.append(f"{where}'{path}' is not a file of the workspace")
        return
    try:
        text = read(path)
    except UnicodeDecodeError:
        found.problems.append(f"{where}'{path}' is not a text in UTF-8")
        return
    except OSError as err:
        found.problems.append(f"{where}'{path}' cannot be read: {err.strerror or err}")
        return
    for number, line in _logical_lines(text):
        place = f"{path}:{number}"
        if not line.startswith("-"):
            _take_requirement(line, place, found, is_constraint)
            continue
        option, value, problem = _read_option(line)
        if problem is not None:
            found.problems.append(hide_logins(f"{place}: {problem}"))
            continue
        if option in _INCLUDES and not _URL.match(value):
            included = posixpath.normpath(posixpath.join(posixpath.dirname(path), value))
            found.lines.append(f"{_INCLUDES[option]} {included}")
            is_inner_constraint = is_constraint or _INCLUDES[option] == "-c"
            _read_file(
                included, read, found, included_from=place, parents=(*parents, path), is_constraint=is_inner_constraint
            )
            continue
        if option in _EDITABLES:
            found.problems.append(hide_logins(f"{place}: '{line}' is for one job alone; {OWN_LAYER_ADVICE}"))
            continue
        if option in ("-f", "--find-links") and not _URL.match(value):
            found.local_paths.append(value)
        found.lines.append(f"{option} {value}".strip())


def _take_requirement(line: str, place: str, found: Requirements, is_constraint: bool) -> None:
    problem = describe_bad_requirement(line)
    if problem is not None:
        found.problems.append(hide_logins(f"{place}: '{line}' {problem}"))
        return
    found.lines.append(line)
    text = _OWN_OPTIONS.split(line, maxsplit=1)[0]
    if _is_archive(text) and not _URL.match(text):
        found.local_paths.append(text)
    name = name_of(line)
    if not is_constraint:
        found.names.append(name or hide_logins(text))


def _read_option(line: str) -> tuple[str, str, str | None]:
    """The option of a line, its value, and what is wrong with it."""
    try:
        words = shlex.split(line)
    except ValueError as err:
        return "", "", f"'{line}' cannot be read: {err}"
    option, has_equals, value = words[0].partition("=")
    if not option.startswith("--") and len(option) > 2:
        # pip takes -rfile as -r file.
        option, value, has_equals = words[0][:2], words[0][2:].lstrip("="), "="
    rest = words[1:]
    if not has_equals and rest:
        value, rest = rest[0], rest[1:]
    if option not in _OPTIONS:
        return option, value, f"unknown option '{option}'.{suggest_names(option, list(_OPTIONS))}"
    if option in _FLAGS:
        return option, "", f"'{option}' has no value" if value or rest else None
    if not value:
        return option, value, f"'{option}' needs a value"
    return option, value, f"'{' '.join(rest)}' behind '{option} {value}' cannot be read" if rest else None


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, joined where a backslash ends one; with the number of the first of them."""
    waiting, first = "", 0
    for number, raw in enumerate([*text.removeprefix("\ufeff").splitlines(), ""], start=1):
        is_comment = raw.lstrip().startswith("#")
        if raw.endswith("\\") and not is_comment:
            first = first or number
            waiting += raw[:-1]
            continue
        line = _COMMENT.sub("", waiting + ("" if is_comment and waiting else raw)).strip()
        if line:
            yield first or number, line
        waiting, first = "", 0


def _is_archive(text: str) -> bool:
    return _ARCHIVE.search(text) is not None and "@" not in text
