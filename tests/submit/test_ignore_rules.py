"""A workspace leaves out what git ignores: judged by git itself."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from periflow_ray.submit import ignore_rules
from periflow_ray.submit.workspace import Workspace, scan_workspace


def git(directory: Path, *arguments: str) -> str:
    environ = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, check=True, capture_output=True, env=environ).stdout.decode(errors="surrogateescape")


def write(directory: Path, **content_by_name: str) -> None:
    for name, content in content_by_name.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, newline="")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    path = tmp_path / "repository"
    path.mkdir()
    git(path, "init", "-q")
    return path


@pytest.fixture(params=["git", "no git"])
def has_git(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The same with git, and where it is not installed."""
    if request.param == "no git":
        monkeypatch.setattr(ignore_rules, "_list_ignored", refuse)
    return bool(request.param == "git")


def refuse(*asked: Path) -> frozenset[str]:
    raise ignore_rules._NoAnswerError("it is not installed")


def names(workspace: Workspace) -> set[str]:
    return set(workspace.files)


NAMES = ["a", "b", "data", "x.pt", "y.log", "dir", "c d", "#h", "!k", "z\\", "[q]", "-m", ".env", "trail ", "***"]
# fmt: off
PATTERNS = [
    "*.pt", "/data", "data/", "data/*", "!data/x.pt", "**/a", "a/**", "dir/**/y.log", "!x.pt", "*.log", "\\#h",
    "\\!k", "#comment", "", "c d", "c\\ d", "trail\\ ", "trail ", "[ab]", "[!a]", "*", "!*/", "!*.log", "/*",
    "!/dir", "dir/", "!dir/", "?", "??", "**", "/**/data", "foo/", "b/**/c", "*/a", "!.env", ".*", "x.??",
    "\\[q\\]", "***", "a**", "/a/*/", "!a", "z\\\\", "a/**/", "!a/**/", "**/", "*/", "!data", "/dir/*",
    "!/dir/data/",
]
# fmt: on
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map("/".join)
RULES = st.tuples(
    st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=4),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["", "\ufeff"]),
).map(lambda parts: parts[2] + parts[1].join(parts[0]))


@settings(max_examples=80, deadline=None)
@example(files=["a/a/a/a"], tracked=set(), rules={0: "/*"}, exclude=None, depth=1)
@given(
    files=st.lists(PATHS, min_size=1, max_size=10),
    tracked=st.sets(st.integers(0, 9), max_size=2),
    rules=st.dictionaries(st.integers(0, 9), RULES, min_size=1, max_size=3),
    exclude=st.none() | RULES,
    depth=st.integers(0, 1),
)
def test_a_workspace_has_the_files_that_git_would_add(files, tracked, rules, exclude, depth):
    with tempfile.TemporaryDirectory() as temporary:
        repository = Path(temporary).resolve()
        git(repository, "init", "-q")
        for name in files:
            try:
                write(repository, **{name: "x"})
            except OSError:  # It is a directory, or below a file.
                continue
        directories = sorted(
            path for path in (repository, *repository.rglob("*")) if path.is_dir() and ".git" not in path.parts
        )
        present = sorted(path for path in repository.rglob("*") if path.is_file() and ".git" not in path.parts)
        for number, text in rules.items():
            write(directories[number % len(directories)], **{".gitignore": text})
        if exclude is not None:
            write(repository, **{".git/info/exclude": exclude})
        # Not where git itself is not asked: only it knows what it tracks.
        expected_without_git = git(repository, "ls-files", "-coz", "--exclude-standard").split("\0")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
            patch.setattr(ignore_rules, "_list_ignored", refuse)
            assert names(scan_workspace(repository)) == set(filter(None, expected_without_git))
        for number in tracked:
            git(repository, "add", "-f", str(present[number % len(present)]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
            workspace = directories[-1] if depth else repository
            listed = git(workspace, "ls-files", "-coz", "--exclude-standard").split("\0")
            places = [str(place) for place in (workspace, *workspace.parents)]
            # What is asked for by name is sent though it is ignored.
            if ignore_rules._list_ignored(repository, workspace).isdisjoint(places):
                assert names(scan_workspace(workspace)) == set(filter(None, listed))


def test_rules_of_the_folders_above_and_of_the_repository_alone_count(repository, has_git):
    """The secret of a repository whose subfolder is the workspace stays at home."""
    write(repository, **{".gitignore": ".env\n/project/out\n", ".git/info/exclude": "*.key\n"})
    write(
        repository,
        **{f"project/{name}": "x" for name in ("main.py", ".env", "my.key", "deep/.env", "out/a", "deep/out/b")},
    )
    workspace = scan_workspace(repository / "project")
    assert names(workspace) == {"main.py", "deep/out/b"}
    assert list(workspace.ignored) == [".env", "deep/.env", "my.key", "out/"]


def test_tracked_files_travel_though_a_pattern_matches(repository):
    write(repository, **{".gitignore": "*.yaml\nruns/\n", "a.yaml": "", "b.yaml": "", "runs/kept/x": "", "runs/y": ""})
    git(repository, "add", "-f", "a.yaml", "runs/kept/x")
    assert names(scan_workspace(repository)) == {".gitignore", "a.yaml", "runs/kept/x"}


def test_rules_for_all_repositories_of_the_user_count(repository, tmp_path, monkeypatch):
    write(tmp_path, excludes=".env\n", config=f"[core]\nexcludesFile = {tmp_path}/excludes\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    write(repository, **{".env": "", "main.py": ""})
    assert names(scan_workspace(repository)) == {"main.py"}


def test_a_repository_inside_has_rules_of_its_own(repository, has_git):
    write(
        repository,
        **{".gitignore": "*.log\n", "main.py": "", "lib/.gitignore": "secret\n", "lib/secret": "", "lib/a.log": ""},
    )
    git(repository / "lib", "init", "-q")
    assert names(scan_workspace(repository)) == {".gitignore", "main.py", "lib/.gitignore", "lib/a.log"}


def test_a_workspace_that_its_repository_ignores_was_asked_for_all_the_same(repository, has_git):
    write(repository, **{".gitignore": "/build/\n*.log\n", "build/main.py": "", "build/a.log": ""})
    assert names(scan_workspace(repository / "build")) == {"main.py"}


def test_pfignore_has_the_last_word(repository, has_git):
    write(
        repository,
        **{".gitignore": "*.pt\nout/\n*.log\n", "model.pt": "", "notes.md": "", "out/a": "", "out/b.log": ""},
    )
    write(repository, **{"nets/.gitignore": "!*.log\n", "nets/c.log": "", "nets/d.md": ""})
    write(repository, **{".pfignore": "!model.pt\n*.md\n.*ignore\n!out/\nnets/c.log\n"})
    # What it takes back in is a folder like others: the repository's rules count in it.
    assert names(scan_workspace(repository)) == {"model.pt", "out/a"}


def test_a_directory_that_is_left_out_cannot_be_taken_back_in_below(repository, has_git):
    write(repository, **{".gitignore": "runs\n!keep\n", "runs/keep": "", "keep": "", "runs/.gitignore": "!keep\n"})
    assert names(scan_workspace(repository)) == {".gitignore", "keep"}


def test_a_repository_cannot_have_programs_run(repository, tmp_path):
    script = tmp_path / "monitor"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    script.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(script))
    write(repository, **{"main.py": ""})
    assert names(scan_workspace(repository)) == {"main.py"}
    assert not (tmp_path / "was-run").exists()


def test_a_hooks_variables_do_not_lead_to_another_repository(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    write(repository, **{".gitignore": "*.log\n", "a.log": "", "main.py": ""})
    monkeypatch.setattr(ignore_rules, "_read_rules", lambda directory, name: ())
    assert names(scan_workspace(repository)) == {".gitignore", "main.py"}


def test_names_in_any_script_and_names_that_are_no_text_are_matched(repository, has_git):
    write(repository, **{".gitignore": "학습*\n*.로그\n", "학습.py": "", "a.로그": "", "검증.py": ""})
    for name in (b"\xff.log", b"\xff.py"):
        (repository / os.fsdecode(name)).touch()
    with (repository / ".gitignore").open("ab") as rules:
        rules.write(b"\xff.log\n")
    assert names(scan_workspace(repository)) == {".gitignore", "검증.py", os.fsdecode(b"\xff.py")}


def test_a_git_that_does_not_answer_is_told(repository, tmp_path, monkeypatch):
    write(repository, **{".gitignore": "*.yaml\n", "kept.yaml": "", "main.py": ""})
    git(repository, "add", "-f", "kept.yaml")
    assert scan_workspace(repository).git_trouble is None
    (repository / ".git" / "index").write_bytes(b"damaged")
    workspace = scan_workspace(repository)
    assert (names(workspace), workspace.ignored) == ({".gitignore", "main.py"}, ["kept.yaml"])
    assert workspace.git_trouble is not None
    assert "index" in workspace.git_trouble
    monkeypatch.setenv("PATH", str(tmp_path))
    assert scan_workspace(repository).git_trouble == "it is not installed"
    assert scan_workspace(tmp_path).git_trouble == "it is not installed"
    (repository / ".git").rename(tmp_path / "elsewhere")
    assert scan_workspace(repository).git_trouble is None
