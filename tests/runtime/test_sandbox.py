from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from periflow_ray.errors import StorageError
from periflow_ray.runtime.member import sandbox as sandbox_module
from periflow_ray.runtime.member.sandbox import Sandbox
from periflow_ray.store.root import StorageRoot


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.setattr(sandbox_module, "_base_dir", lambda: tmp_path)
    return Sandbox("/storage", 1, 0)


def test_what_a_job_has_stays_for_its_next_attempt(sandbox: Sandbox) -> None:
    sandbox.create("one")
    output = sandbox.path_of("/workspace/ckpt/state")
    output.parent.mkdir(parents=True)
    output.touch()
    (sandbox.snapshots_dir / "unfinished").touch()
    sandbox.create("one")
    assert output.exists()
    assert list(sandbox.snapshots_dir.iterdir()) == []


def test_a_sandbox_is_removed_when_the_processes_that_write_into_it_have_ended(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.create("one")
    script = f"""
import fcntl, os, sys
fd = os.open({str(sandbox.directory)!r}, os.O_RDONLY)
fcntl.flock(fd, fcntl.LOCK_SH)
print("holds", flush=True)
while not sys.stdin.closed and os.read(0, 1):
    open(os.path.join({str(sandbox.directory)!r}, "late"), "w").close()
"""
    rank = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert rank.stdout is not None
    assert rank.stdin is not None
    assert rank.stdout.readline() == b"holds\n"
    removing = threading.Thread(target=Sandbox("/storage", 1, 0).remove)
    removing.start()
    rank.stdin.write(b"x")
    rank.communicate(timeout=30)
    removing.join(30)
    assert not sandbox.job_dir.exists()


def test_a_process_that_does_not_end_keeps_nobody_from_removing_a_sandbox(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_module, "REMOVE_TIMEOUT_S", 0.2)
    sandbox.create("one")
    sandbox.hold()
    Sandbox("/storage", 1, 0).remove()
    assert not sandbox.job_dir.exists()
    sandbox.release()


@pytest.mark.parametrize("before", ["another", None])
def test_nothing_of_another_job_with_the_same_number_is_left(sandbox: Sandbox, before: str | None) -> None:
    if before is not None:
        sandbox.create(before)
    output = sandbox.path_of("/workspace/main.py")
    output.parent.mkdir(parents=True)
    output.touch()
    sandbox.create("one")
    assert not output.exists()


def test_an_abandoned_sandbox_is_not_used_again_but_removed_with_the_job(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.create("one")
    sandbox.abandon()
    second = Sandbox("/storage", 1, 0)
    assert (sandbox.directory.name, second.directory.name) == ("node-0", "node-0.1")
    assert second.marker != sandbox.marker
    second.create("one")
    assert Sandbox("/storage", 1, 0).directory == second.directory
    second.abandon()
    third = Sandbox("/storage", 1, 0)
    third.create("one")
    assert third.directory.name == "node-0.2"
    neighbour = Sandbox("/storage", 1, 1)
    neighbour.create("one")
    Sandbox("/storage", 1, 0).remove()
    assert [path.name for path in neighbour.job_dir.iterdir()] == ["node-1"]
    neighbour.remove()
    assert not neighbour.job_dir.exists()


def pack(root: StorageRoot, tmp_path: Path, *members: tuple[str, str]) -> None:
    """Store a workspace: of each member its name, and what it is a symbolic link to (empty: a file)."""
    with tarfile.open(tmp_path / "w.tar.gz", "w:gz") as packed:
        for name, leads_to in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = (tarfile.SYMTYPE, leads_to) if leads_to else (tarfile.REGTYPE, "")
            packed.addfile(member)
    root.write_bytes("jobs/1/workspace.tar.gz", (tmp_path / "w.tar.gz").read_bytes())


@pytest.fixture(params=["with filters", "without filters"])
def any_python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pythons with and without filters of what is unpacked."""
    if request.param == "without filters":
        monkeypatch.delattr(tarfile, "data_filter", raising=False)


@pytest.mark.usefixtures("any_python")
def test_a_workspace_is_unpacked_with_its_links(sandbox: Sandbox, tmp_path: Path) -> None:
    root = StorageRoot(str(tmp_path / "storage"))
    pack(root, tmp_path, ("code/main.py", ""), ("code/sub/latest", "../main.py"))
    sandbox.create("one")
    sandbox.unpack_workspace(root, 1, "/workspace")
    assert os.readlink(sandbox.path_of("/workspace/code/sub/latest")) == "../main.py"
    assert sandbox.path_of("/workspace/code/main.py").is_file()


@pytest.mark.usefixtures("any_python")
@pytest.mark.parametrize(
    "member", [("../out", ""), ("/tmp/periflow-out", ""), ("code/link", "../../out"), ("l", "/etc")]
)
def test_nothing_of_a_workspace_lies_elsewhere(sandbox: Sandbox, tmp_path: Path, member: tuple[str, str]) -> None:
    root = StorageRoot(str(tmp_path / "storage"))
    pack(root, tmp_path, ("code/main.py", ""), member)
    sandbox.create("one")
    if member[0].startswith("/") and hasattr(tarfile, "data_filter"):
        # Python takes the leading slash away.
        sandbox.unpack_workspace(root, 1, "/workspace")
    else:
        with pytest.raises((tarfile.TarError, StorageError)):
            sandbox.unpack_workspace(root, 1, "/workspace")
    assert not Path("/tmp/periflow-out").exists()
    assert not (sandbox.root_dir / "out").exists()


def test_what_was_deleted_of_a_workspace_is_fetched_again_and_the_rest_stays(sandbox: Sandbox, tmp_path: Path) -> None:
    """Whatever clears out /tmp deletes single files, those that nobody has touched for ten days."""
    root = StorageRoot(str(tmp_path / "storage"))
    pack(root, tmp_path, ("code/main.py", ""), ("code/helper.py", ""), ("code/latest", "main.py"))
    sandbox.create("one")
    assert not sandbox.unpack_workspace(root, 1, "/workspace")
    code = sandbox.path_of("/workspace/code")
    (code / "main.py").write_text("changed by the command")
    (code / "out.txt").touch()
    archive = root.read_bytes("jobs/1/workspace.tar.gz")
    root.delete("jobs/1/workspace.tar.gz")
    # Not even looked for.
    assert not sandbox.unpack_workspace(root, 1, "/workspace")
    root.write_bytes("jobs/1/workspace.tar.gz", archive)
    for name in ("helper.py", "latest"):
        (code / name).unlink()
        assert sandbox.unpack_workspace(root, 1, "/workspace")
        assert {path.name for path in code.iterdir()} == {"main.py", "helper.py", "latest", "out.txt"}
    shutil.rmtree(sandbox.root_dir)
    assert sandbox.unpack_workspace(root, 1, "/workspace")
    assert (code / "main.py").read_text() == ""


def test_a_workspace_that_was_half_unpacked_is_unpacked_as_a_whole(sandbox: Sandbox, tmp_path: Path) -> None:
    root = StorageRoot(str(tmp_path / "storage"))
    pack(root, tmp_path, ("code/main.py", ""))
    sandbox.create("one")
    half = sandbox.path_of("/workspace/code/main.py")
    half.parent.mkdir(parents=True)
    half.write_text("half of an earlier one")
    assert not sandbox.unpack_workspace(root, 1, "/workspace")
    assert half.read_text() == ""
