"""Whether a ``setup`` only installs, so that it need not run again where it has succeeded. Pure.

It does if each of its commands is one of ``pip install``, ``uv pip install``, ``conda install``, ``apt-get install``
and ``apt-get update``, or ``cd``, ``export`` and ``set``, which the run after it may need and which run each time.
Pipes, conditions, substitutions and everything else make it one that runs each time as a whole.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

_CONDA = ("conda", "mamba", "micromamba")
_PROGRAMS_BEFORE_INSTALL = (
    re.compile(r"pip[0-9.]*"),
    re.compile(r"python[0-9.]* -m pip"),
    re.compile(r"uv pip"),
    re.compile("|".join(_CONDA)),
    re.compile(r"(sudo )?(apt|apt-get)"),
)
_STATE_COMMANDS = ("cd", "export", "set")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*")
# A word as it is written, quotes and all; blanks, or a comment; or what separates commands.
_TOKEN = re.compile(
    r"""(?P<word>(?:'[^']*'|"(?:[^"\\]|\\.)*"|(?!\#)[^\s'"\\;&]|(?<=\S)\#)+)|\s+|\#.*|(?P<separator>;|&&(?!&))"""
)
_QUOTED = re.compile(r"""'[^']*'|"(?:[^"\\]|\\.)*\"""")
# Bash does not join it with the next line.
_COMMENT_THAT_GOES_ON = re.compile(r"#.*\\\n")
# Of bash, beside the `;` and `&&` that separate commands, quotes and `$NAME`.
_OTHER_SYNTAX = re.compile(r"[`|<>(){}*?\[\]!]")
_REQUIREMENT_OPTIONS = ("-r", "--requirement", "-c", "--constraint")


class InstallSetup(BaseModel):
    """A setup that only installs, and the run that follows it.

    Args:
        lines: of the setup; each is commands that are joined by ``&&``.
        kept: of each line the commands that run each time.
        requirement_files: that it names, relative to where it begins; or absolute.
        run: the command after it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    lines: tuple[str, ...]
    kept: tuple[str, ...]
    requirement_files: tuple[str, ...]
    run: str

    def build_text(self, mark: str) -> str:
        """Bash text that makes the file ``mark`` when each of the lines has succeeded, and runs."""
        checked = "\n".join(f"{line}\n__pf_status=$?; [ $__pf_status -eq 0 ] || __pf_failed=1" for line in self.lines)
        done = f'[ -n "${{__pf_failed-}}" ] || : > {shlex.quote(mark)}'
        return f"{{\n{checked}\n{done}\n(exit $__pf_status)\n}} && {{\n{self.run}\n}}"

    def build_short_text(self) -> str:
        """Bash text for where it has succeeded."""
        if not self.kept:
            return self.run
        return "{\n" + "\n".join(self.kept) + f"\n}} && {{\n{self.run}\n}}"


def find_install_setup(setup: str, run: str) -> InstallSetup | None:
    """A setup that only installs; None if it does anything else."""
    lines: list[str] = []
    kept: list[str] = []
    files: list[str] = []
    directory, has_install = "", False
    split = _split_lines(setup)
    if split is None:
        return None
    for line in split:
        state: list[str] = []
        for command in line:
            words = _without_assignments(command)
            if words and words[0] in _STATE_COMMANDS:
                state.append(" ".join(command))
                if words[0] == "cd":
                    if len(words) != 2 or words[1].startswith(("-", "~")) or "$" in words[1]:
                        return None
                    directory = posixpath.join(directory, words[1])
                continue
            if not _is_install(words):
                return None
            has_install = True
            if words[0] in _CONDA:
                # Its `-c` names a channel, and its files are not pip's.
                if any(word.startswith("--file") for word in words):
                    return None
                continue
            files += [posixpath.join(directory, name) for name in _requirement_files(words)]
        lines.append(" && ".join(map(" ".join, line)))
        if state:
            kept.append(" && ".join(state))
    if not has_install:
        return None
    return InstallSetup(lines=tuple(lines), kept=tuple(kept), requirement_files=tuple(files), run=run)


def _split_lines(setup: str) -> list[list[list[str]]] | None:
    """Lines of commands of words, each word as it is written; None where there is anything else."""
    if _COMMENT_THAT_GOES_ON.search(setup):
        return None
    found: list[list[list[str]]] = []
    for raw in setup.replace("\\\n", " ").splitlines():
        commands: list[list[str]] = [[]]
        position = 0
        while position < len(raw):
            token = _TOKEN.match(raw, position)
            if token is None:
                return None
            position = token.end()
            word = token["word"]
            if word is not None:
                if _OTHER_SYNTAX.search(_outside_single_quotes(word)):
                    return None
                commands[-1].append(word)
            elif token["separator"] is not None:
                if not commands[-1]:
                    return None
                if token["separator"] == ";":
                    found.append(commands)
                    commands = []
                commands.append([])
        if commands != [[]]:
            found.append(commands)
    return found


def _outside_single_quotes(word: str) -> str:
    """What bash looks at in a word; in double quotes it still looks for substitutions."""
    has_substitution = re.compile(r'".*(`|\$\()')
    return _QUOTED.sub(lambda quoted: "`" if has_substitution.match(quoted[0]) else "", word)


def _without_assignments(command: Sequence[str]) -> list[str]:
    words = list(command)
    while words and _ASSIGNMENT.fullmatch(words[0]):
        words.pop(0)
    return [word.strip("'\"") for word in words]


def _is_install(words: Sequence[str]) -> bool:
    for index, word in enumerate(words):
        if word in ("install", "update"):
            program = " ".join(before for before in words[:index] if not re.fullmatch(r"-[yq]+|--yes|--quiet", before))
            is_apt = re.fullmatch(_PROGRAMS_BEFORE_INSTALL[-1], program) is not None
            is_known = any(pattern.fullmatch(program) for pattern in _PROGRAMS_BEFORE_INSTALL)
            return is_known and (word == "install" or is_apt)
    return False


def _requirement_files(words: Sequence[str]) -> list[str]:
    found = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, has_value, value = word.partition("=")
        if option in _REQUIREMENT_OPTIONS:
            found.append(value if has_value else following)
        elif re.match(r"-[rc][^-]", word):
            found.append(word[2:])
    return [name for name in found if name]
