from __future__ import annotations

import io
import os
import random
import resource
import socket
import tarfile
from pathlib import Path

import pytest
from rich.console import Console

from periflow_ray.cli.file_tree import build_file_tree
from periflow_ray.errors import WorkspaceError
from periflow_ray.store.trees import TreeEntry
from periflow_ray.submit.workspace import MAX_DEPTH, pack_workspace, scan_workspace, workspace_name


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "cifar"
    path.mkdir()
    return path


def write(directory: Path, *names: str, content: str = "x") -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def pack_and_unpack(directory: Path, tmp_path: Path) -> Path:
    archive = tmp_path / "workspace.tar.gz"
    pack_workspace(scan_workspace(directory), archive)
    target = tmp_path / "node"
    with tarfile.open(archive) as packed:
        packed.extractall(target, filter="data")
    return target


def test_a_workspace_arrives_as_it_was_below_its_own_name(directory, tmp_path):
    write(directory, "main.py", content="print('학습')\n")
    write(directory, "nets/resnet.py", "nets/.hidden", "empty.txt", content="")
    write(directory, "run me.sh", content="#!/bin/bash\n")
    (directory / "run me.sh").chmod(0o755)
    workspace = scan_workspace(directory)
    assert workspace.files == {
        "empty.txt": 0,
        "main.py": 16,
        "nets/.hidden": 0,
        "nets/resnet.py": 0,
        "run me.sh": 12,
    }
    assert workspace.entries == [TreeEntry("nets")]
    assert (workspace.name, workspace.size) == ("cifar", 28)
    node = pack_and_unpack(directory, tmp_path)
    assert sorted(str(path.relative_to(node)) for path in node.rglob("*") if path.is_file()) == [
        "cifar/empty.txt",
        "cifar/main.py",
        "cifar/nets/.hidden",
        "cifar/nets/resnet.py",
        "cifar/run me.sh",
    ]
    assert (node / "cifar/main.py").read_text() == "print('학습')\n"
    assert os.access(node / "cifar/run me.sh", os.X_OK)


def test_an_empty_workspace_is_an_empty_directory(directory, tmp_path):
    assert scan_workspace(directory).files == {}
    assert list((pack_and_unpack(directory, tmp_path) / "cifar").iterdir()) == []


def test_the_working_directory_has_a_name(directory, monkeypatch):
    monkeypatch.chdir(directory)
    assert scan_workspace(Path(".")).name == "cifar"


def test_the_archive_says_nothing_about_the_user(directory, tmp_path):
    write(directory, "main.py")
    pack_workspace(scan_workspace(directory), tmp_path / "workspace.tar.gz")
    with tarfile.open(tmp_path / "workspace.tar.gz") as packed:
        owners = {(member.uid, member.gid, member.uname, member.gname) for member in packed}
    assert owners == {(0, 0, "", "")}


def test_gitignore_rules_leave_files_out(directory):
    write(directory, "main.py", "run.log", "data/a.bin", "data/deep/b.bin", "nets/data/c.bin", "build", "nets/x.tmp")
    write(directory, ".gitignore", content="# a comment\n*.log\n/data/\n*.tmp\nbuild/\n")
    assert set(scan_workspace(directory).files) == {".gitignore", "build", "main.py", "nets/data/c.bin"}


def test_a_rule_can_take_a_file_back_in(directory):
    write(directory, "a.bin", "model.bin", "out/log.txt", "out/keep.txt")
    write(directory, ".gitignore", content="*.bin\n!model.bin\nout/*\n!out/keep.txt\n")
    assert set(scan_workspace(directory).files) == {".gitignore", "model.bin", "out/keep.txt"}


def test_a_file_in_a_directory_that_is_left_out_cannot_be_taken_back_in_as_in_git(directory):
    write(directory, "out/keep.txt", "main.py")
    write(directory, ".gitignore", content="out/\n!out/keep.txt\n")
    assert set(scan_workspace(directory).files) == {".gitignore", "main.py"}


def test_a_nested_file_of_rules_counts_below_its_own_directory_and_wins_there(directory):
    write(directory, "a.txt", "b.csv", "nets/a.txt", "nets/b.csv", "nets/deep/b.csv")
    write(directory, ".gitignore", content="*.csv\n")
    write(directory, "nets/.gitignore", content="*.txt\n!b.csv\n/deep\n")
    assert set(scan_workspace(directory).files) == {".gitignore", "a.txt", "nets/.gitignore", "nets/b.csv"}


def test_pfignore_wins_over_gitignore(directory):
    write(directory, "model.pt", "notes.md", "main.py")
    write(directory, ".gitignore", content="*.pt\n")
    write(directory, ".pfignore", content="!model.pt\n*.md\n.*ignore\n")
    assert set(scan_workspace(directory).files) == {"main.py", "model.pt"}


def test_what_no_job_needs_is_always_left_out(directory):
    write(
        directory, "main.py", ".git/config", ".venv/bin/python", "a/__pycache__/x.pyc", "a/.ipynb_checkpoints/b.ipynb"
    )
    assert set(scan_workspace(directory).files) == {"main.py"}


def test_a_link_that_is_ignored_may_lead_anywhere(directory, tmp_path):
    write(tmp_path, "big/data.bin")
    (directory / "data").symlink_to(tmp_path / "big")
    write(directory, ".pfignore", content="/data\n")
    assert set(scan_workspace(directory).files) == {".pfignore"}


def test_a_rule_that_is_none_is_refused_with_its_file(directory):
    write(directory, ".pfignore", content="!\n")
    with pytest.raises(WorkspaceError) as caught:
        scan_workspace(directory)
    assert str(caught.value).startswith(f"{directory}/.pfignore: ")


def test_a_too_large_workspace_is_refused_with_the_largest_files(directory):
    for number in range(12):
        write(directory, f"data/{number:02}.bin", content="x" * (number + 1) * 100_000)
    write(directory, "main.py")
    with pytest.raises(WorkspaceError) as caught:
        scan_workspace(directory, max_bytes=1 << 20)
    assert str(caught.value) == (
        f"workspace '{directory}' has 7.4 MiB in 13 files; at most 1.0 MiB are allowed. Add what the job does not need "
        f"to '{directory}/.pfignore' (as in .gitignore), or make data a dataset (periflow-ray datastore upload). "
        "The largest files:\n"
        "     1.1 MiB  data/11.bin\n"
        "     1.0 MiB  data/10.bin\n"
        "     1.0 MiB  data/09.bin\n"
        "     0.9 MiB  data/08.bin\n"
        "     0.8 MiB  data/07.bin\n"
        "     0.7 MiB  data/06.bin\n"
        "     0.6 MiB  data/05.bin\n"
        "     0.5 MiB  data/04.bin\n"
        "     0.4 MiB  data/03.bin\n"
        "     0.3 MiB  data/02.bin"
    )


def test_a_workspace_of_exactly_the_allowed_size_is_taken(directory):
    write(directory, "a", "b", content="x" * 50)
    assert scan_workspace(directory, max_bytes=100).size == 100
    with pytest.raises(WorkspaceError):
        scan_workspace(directory, max_bytes=99)


def test_links_inside_stay_links(directory, tmp_path):
    write(directory, "nets/resnet.py", content="resnet")
    (directory / "model.py").symlink_to("nets/resnet.py")
    (directory / "nets" / "absolute.py").symlink_to(directory / "nets" / "resnet.py")
    (directory / "networks").symlink_to("nets")
    (directory / "nets" / "nowhere").symlink_to("missing.py")
    node = pack_and_unpack(directory, tmp_path) / "cifar"
    assert {str(path.relative_to(node)): os.readlink(path) for path in node.rglob("*") if path.is_symlink()} == {
        "model.py": "nets/resnet.py",
        "nets/absolute.py": "resnet.py",
        "networks": "nets",
        "nets/nowhere": "missing.py",
    }
    assert (node / "networks" / "absolute.py").read_text() == "resnet"


@pytest.mark.parametrize(
    "target", ["../shared/id_rsa", "../shared", "../missing", "inner/../../shared/id_rsa", "/etc/passwd"]
)
def test_a_link_that_leads_out_of_the_workspace_is_left_out_and_told(directory, tmp_path, target):
    """A repository that somebody cloned must not take the keys of this machine with it."""
    write(tmp_path, "shared/id_rsa")
    write(directory, "inner/main.py")
    (directory / "out").symlink_to(target)
    workspace = scan_workspace(directory)
    assert workspace.skipped == [(f"{directory}/out", f"is a link to '{target}', which is not in it")]
    node = pack_and_unpack(directory, tmp_path) / "cifar"
    assert sorted(path.name for path in node.rglob("*")) == ["inner", "main.py"]


def test_a_workspace_that_is_a_link_keeps_the_name_that_the_user_typed(directory, tmp_path):
    write(directory, "main.py")
    (tmp_path / "alias").symlink_to(directory)
    assert workspace_name(tmp_path / "alias") == scan_workspace(tmp_path / "alias").name == "alias"
    assert (pack_and_unpack(tmp_path / "alias", tmp_path) / "alias" / "main.py").exists()


def test_times_and_empty_directories_arrive(directory, tmp_path):
    write(directory, "old/main.py")
    (directory / "out").mkdir()
    for name, time_s in (("old/main.py", 1_500_000_000.25), ("old", 1_600_000_000.5), ("out", 1_400_000_000)):
        os.utime(directory / name, (time_s, time_s))
    node = pack_and_unpack(directory, tmp_path) / "cifar"
    times = [(node / name).stat().st_mtime for name in ("old/main.py", "old", "out")]
    assert times == [1_500_000_000.25, 1_600_000_000.5, 1_400_000_000]


def test_what_was_replaced_after_it_was_listed_is_not_packed(directory, tmp_path):
    write(tmp_path, "id_rsa")
    write(directory, "main.py")
    for replace in (os.mkfifo, lambda path: path.symlink_to(tmp_path / "id_rsa"), Path.mkdir):
        workspace = scan_workspace(directory)
        (directory / "main.py").unlink()
        replace(directory / "main.py")
        with pytest.raises(WorkspaceError, match=r"main\.py"):
            pack_workspace(workspace, tmp_path / "workspace.tar.gz")
        (directory / "main.py").rmdir() if replace is Path.mkdir else (directory / "main.py").unlink()
        write(directory, "main.py")


def test_a_very_deep_workspace_is_packed_and_shown_and_a_deeper_one_refused(directory, tmp_path):
    deep = directory / ("d/" * MAX_DEPTH)
    write(deep, "main.py")
    workspace = scan_workspace(directory)
    assert list(workspace.files) == ["d/" * MAX_DEPTH + "main.py"]
    assert (pack_and_unpack(directory, tmp_path) / "cifar" / ("d/" * MAX_DEPTH) / "main.py").exists()
    Console(file=io.StringIO()).print(build_file_tree("/workspace/cifar", workspace.files))
    (deep / "d").mkdir()
    with pytest.raises(WorkspaceError) as caught:
        scan_workspace(directory)
    assert str(caught.value) == (
        f"workspace '{directory}' has more than 200 levels of folders. Add the deep ones to '{directory}/.pfignore': "
        "d/d/d/d/d/..."
    )


def test_two_names_of_one_file_arrive_as_two_files(directory, tmp_path):
    write(directory, "a.py", content="content")
    os.link(directory / "a.py", directory / "b.py")
    node = pack_and_unpack(directory, tmp_path) / "cifar"
    assert ((node / "a.py").read_text(), (node / "b.py").read_text()) == ("content", "content")


def test_pipes_and_sockets_are_left_out(directory, monkeypatch):
    write(directory, "main.py")
    os.mkfifo(directory / "pipe")
    monkeypatch.chdir(directory)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        assert set(scan_workspace(directory).files) == {"main.py"}


def test_a_file_that_is_gone_when_it_is_packed_is_said_to_be(directory, tmp_path):
    write(directory, "main.py")
    workspace = scan_workspace(directory)
    (directory / "main.py").unlink()
    with pytest.raises(WorkspaceError) as caught:
        pack_workspace(workspace, tmp_path / "workspace.tar.gz")
    assert str(caught.value) == f"cannot read '{directory}/main.py': No such file or directory"


def test_what_is_no_directory_is_refused(directory, tmp_path):
    write(directory, "main.py")
    for path, what in ((tmp_path / "nowhere", "does not exist"), (directory / "main.py", "is not a directory")):
        with pytest.raises(WorkspaceError) as caught:
            scan_workspace(path)
        assert str(caught.value) == f"workspace '{path}' {what}. Give the directory with your script: -d DIR"
    with pytest.raises(WorkspaceError) as caught:
        scan_workspace(Path("/"))
    assert str(caught.value) == "workspace '/' is the root of the file system. Give a directory below it."


def test_an_archive_that_finds_no_room_is_said_to_be_the_trouble(directory, tmp_path):
    (directory / "data.bin").write_bytes(random.Random(7).randbytes(300_000))
    workspace = scan_workspace(directory)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(WorkspaceError) as caught:
            pack_workspace(workspace, tmp_path / "workspace.tar.gz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (
        str(caught.value)
        == f"the workspace cannot be packed into '{tmp_path}/workspace.tar.gz': [Errno 27] File too large"
    )
