"""Which files of a workspace are left out: what git ignores, and on top of that what ``.pfignore`` says.

In a git repository git itself is asked, so that tracked files travel whatever the patterns say, and the rules of all
places count. Elsewhere, or where git does not answer, ``.gitignore`` files are read as git does, those of the folders
up to the repository's among them.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from periflow_ray.errors import WorkspaceError
from periflow_ray.submit.ignore_patterns import parse_rules

_GIT_TIMEOUT_S = 60.0
# Variables that would lead git to another repository, as in a hook.
_GIT_PLACES = frozenset({"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX", "GIT_NAMESPACE"})

_Rules = tuple[tuple[Path, GitIgnoreSpec], ...]


@dataclass(frozen=True)
class _Folder:
    """What counts for the entries of a folder.

    ``ignored_by_git`` are full paths of files, and of directories that are ignored as a whole; None if git does not
    answer, and ``git_rules`` count.
    """

    ignored_by_git: frozenset[str] | None
    git_rules: _Rules
    own_rules: _Rules


class IgnoreRules:
    """The rules of a directory and of what is below it; each directory is entered before its entries are asked about.

    Args:
        root: full path of the workspace.
    Raises:
        WorkspaceError: a line of a file of rules is no pattern.
    """

    def __init__(self, root: Path) -> None:
        self.trouble: str | None = None
        """Why git does not say what it tracks and ignores, where there is a repository."""
        repository = next((folder for folder in (root, *root.parents) if (folder / ".git").exists()), None)
        ignored = None if repository is None else self._ask_git(repository, root)
        if ignored is not None and not ignored.isdisjoint(map(str, (root, *root.parents))):
            # It is ignored itself, and was asked for all the same.
            ignored = None
        above: list[Path] = []
        if repository is not None and repository != root:
            above = [folder for folder in root.parents if folder.is_relative_to(repository)]
        git_rules = _read_exclude(repository)
        for folder in reversed(above):
            git_rules += _read_rules(folder, ".gitignore")
        self._folders = {root: _open(root, _Folder(ignored, git_rules, ()))}

    def ignores(self, path: Path, is_dir: bool) -> bool:
        """Whether an entry is left out; a directory is with everything below it, as in git."""
        folder = self._folders[path.parent]
        by_own = _decide(path, is_dir, folder.own_rules)
        if by_own is not None:
            return by_own
        if folder.ignored_by_git is not None:
            return str(path) in folder.ignored_by_git
        return bool(_decide(path, is_dir, folder.git_rules))

    def enter(self, directory: Path) -> None:
        """Take in the rules of a directory that is not left out."""
        above = self._folders[directory.parent]
        if (directory / ".git").exists():
            # A repository of its own, for example a submodule.
            above = _Folder(self._ask_git(directory, directory), _read_exclude(directory), above.own_rules)
        elif above.ignored_by_git is not None and str(directory) in above.ignored_by_git:
            # .pfignore took it back in; git says nothing more of what is in it.
            above = _Folder(None, above.git_rules, above.own_rules)
        self._folders[directory] = _open(directory, above)

    def _ask_git(self, repository: Path, directory: Path) -> frozenset[str] | None:
        try:
            return _list_ignored(repository, directory)
        except _NoAnswerError as err:
            self.trouble = self.trouble or str(err)
            return None


def _open(directory: Path, above: _Folder) -> _Folder:
    return _Folder(
        above.ignored_by_git,
        above.git_rules + _read_rules(directory, ".gitignore"),
        above.own_rules + _read_rules(directory, ".pfignore"),
    )


class _NoAnswerError(Exception):
    pass


def _list_ignored(repository: Path, directory: Path) -> frozenset[str]:
    """What git ignores below a directory, as full paths.

    Raises:
        _NoAnswerError: there is no git, or it does not answer.
    """
    try:
        answer = _run_git(repository, directory.relative_to(repository))
        if answer.returncode != 0 and directory != repository:
            # Git 2.39 stumbles over a place below an ignored folder, but not where it is asked for everything.
            answer = _run_git(repository, Path())
    except FileNotFoundError:
        raise _NoAnswerError("it is not installed") from None
    except (OSError, subprocess.TimeoutExpired) as err:
        raise _NoAnswerError(str(err)) from err
    if answer.returncode != 0:
        words = answer.stderr.decode(errors="replace").strip() or f"exit code {answer.returncode}"
        raise _NoAnswerError(words.split("\n")[0])
    names = filter(None, answer.stdout.split(b"\0"))
    return frozenset(os.path.normpath(os.path.join(repository, os.fsdecode(name))) for name in names)


def _run_git(repository: Path, place: Path) -> subprocess.CompletedProcess[bytes]:
    environ = {name: value for name, value in os.environ.items() if name not in _GIT_PLACES}
    # A file system monitor is a program that the repository's configuration names.
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(repository), "ls-files", "-z"]
    options = ["--others", "--ignored", "--exclude-standard", "--directory"]
    return subprocess.run(
        [*command, *options, "--", str(place)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_LITERAL_PATHSPECS": "1"},
        timeout=_GIT_TIMEOUT_S,
    )


def _read_exclude(repository: Path | None) -> _Rules:
    return () if repository is None else _read_rules(repository, ".git/info/exclude")


def _read_rules(directory: Path, name: str) -> _Rules:
    path = directory / name
    if not path.is_file():
        return ()
    try:
        # As git takes lines apart, and names as the file system does.
        lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
        return ((directory, parse_rules(line.removesuffix("\r") for line in lines)),)
    except OSError as err:
        raise WorkspaceError(f"cannot read '{path}': {err.strerror or err}") from err
    except ValueError as err:
        raise WorkspaceError(f"{path}: {err}") from err


def _decide(path: Path, is_dir: bool, rules: _Rules) -> bool | None:
    """What the rule nearest to an entry says of it; None if there is none."""
    decision = None
    for base, spec in rules:
        found = spec.check_file(path.relative_to(base).as_posix() + ("/" if is_dir else "")).include
        decision = decision if found is None else found
    return decision
