"""Snapshots of an output checkpoint directory that scripts overwrite, add to and delete from."""

from __future__ import annotations

import functools
import mmap
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from periflow_ray.runtime.member import snapshot as snapshot_module
from periflow_ray.runtime.member.snapshot import Snapshot, Snapshots
from periflow_ray.store.checksum import checksum_file

LONG_AGO_NS = 10**18


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "ckpt"
    directory.mkdir()
    return directory


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path / "snapshots")


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def age(output_dir: Path, wait_until) -> None:
    """Let the files become old enough to be recognised as unchanged."""
    newest_ns = max(path.stat().st_ctime_ns for path in output_dir.rglob("*"))
    probe = output_dir.parent / "probe"

    def is_old() -> bool:
        probe.write_bytes(b"")
        return probe.stat().st_ctime_ns - newest_ns > 60_000_000

    wait_until(is_old)


def read_all(snapshot: Snapshot) -> dict[str, bytes]:
    return {
        path.relative_to(snapshot.directory).as_posix(): path.read_bytes()
        for path in snapshot.directory.rglob("*")
        if path.is_file()
    }


def test_a_snapshot_keeps_what_the_script_overwrites_in_place(output_dir, snapshots):
    write(output_dir / "checkpoint.pt", b"step 100")
    write(output_dir / "shards" / "0.distcp", b"shard")
    snapshot = snapshots.take(output_dir, "100-1")
    with open(output_dir / "checkpoint.pt", "r+b") as file:
        file.write(b"STEP 200")
    assert read_all(snapshot) == {"checkpoint.pt": b"step 100", "shards/0.distcp": b"shard"}


def test_an_unchanged_file_is_linked_and_a_changed_one_is_copied(output_dir, snapshots, wait_until):
    write(output_dir / "frozen.pt", b"frozen")
    write(output_dir / "checkpoint.pt", b"one")
    age(output_dir, wait_until)
    first = snapshots.take(output_dir, "1-1")
    with open(output_dir / "checkpoint.pt", "r+b") as file:
        file.write(b"two")
    second = snapshots.take(output_dir, "2-1")
    assert os.path.samefile(first.directory / "frozen.pt", second.directory / "frozen.pt")
    assert not os.path.samefile(first.directory / "checkpoint.pt", second.directory / "checkpoint.pt")
    assert (read_all(first)["checkpoint.pt"], read_all(second)["checkpoint.pt"]) == (b"one", b"two")


def test_a_file_of_the_same_size_and_time_but_another_inode_is_copied(output_dir, snapshots, wait_until):
    write(output_dir / "checkpoint.pt", b"one")
    os.utime(output_dir / "checkpoint.pt", ns=(LONG_AGO_NS, LONG_AGO_NS))
    age(output_dir, wait_until)
    snapshots.take(output_dir, "1-1")
    write(output_dir / "new", b"two")
    os.utime(output_dir / "new", ns=(LONG_AGO_NS, LONG_AGO_NS))
    os.replace(output_dir / "new", output_dir / "checkpoint.pt")
    assert read_all(snapshots.take(output_dir, "2-1")) == {"checkpoint.pt": b"two"}


def test_a_file_written_a_moment_ago_is_copied_again(output_dir, snapshots):
    write(output_dir / "checkpoint.pt", b"one")
    first = snapshots.take(output_dir, "1-1")
    second = snapshots.take(output_dir, "2-1")
    assert not os.path.samefile(first.directory / "checkpoint.pt", second.directory / "checkpoint.pt")


def test_a_store_through_a_mapping_that_changes_no_time_stamp_is_not_missed(output_dir, tmp_path, wait_until):
    snapshots = Snapshots(tmp_path / "snapshots", lambda: [os.getpid()])
    weights = output_dir / "with blanks" / "weights.bin"
    write(weights, bytes(8192))
    write(output_dir / "config.json", b"{}")
    with weights.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = 1
        age(output_dir, wait_until)
        first = snapshots.take(output_dir, "1")
        stamp = weights.stat()
        mapped[1] = 2
        assert (weights.stat().st_mtime_ns, weights.stat().st_ctime_ns) == (stamp.st_mtime_ns, stamp.st_ctime_ns)
        second = snapshots.take(output_dir, "2")
    assert (first.directory / "with blanks" / "weights.bin").read_bytes()[:2] == b"\1\0"
    assert (second.directory / "with blanks" / "weights.bin").read_bytes()[:2] == b"\1\2"
    assert (second.directory / "config.json").samefile(first.directory / "config.json")


def test_files_are_described_with_their_checksums_whether_linked_or_copied(output_dir, snapshots, wait_until):
    write(output_dir / "frozen.pt", b"frozen")
    write(output_dir / "checkpoint.pt", b"one")
    age(output_dir, wait_until)
    first = snapshots.take(output_dir, "1-1")
    snapshots.describe(first)
    write(output_dir / "checkpoint.pt", b"second")
    second = snapshots.take(output_dir, "2-1")
    snapshots.release(first)
    described = {file.path: (file.size, file.checksum) for file in snapshots.describe(second).files}
    assert described == {
        name: ((output_dir / name).stat().st_size, checksum_file(output_dir / name))
        for name in ("checkpoint.pt", "frozen.pt")
    }


def test_only_the_newest_snapshot_stays_after_its_upload(output_dir, snapshots):
    write(output_dir / "checkpoint.pt", b"one")
    first, second = snapshots.take(output_dir, "1-1"), snapshots.take(output_dir, "2-1")
    snapshots.release(first)
    snapshots.release(second)
    assert (first.directory.exists(), second.directory.exists()) == (False, True)
    third = snapshots.take(output_dir, "3-1")
    snapshots.release(third)
    assert (second.directory.exists(), third.directory.exists()) == (False, True)


def test_links_and_directories_are_described_and_only_files_are_copied(output_dir, snapshots):
    write(output_dir / "step-5.ckpt", b"five")
    (output_dir / "last.ckpt").symlink_to("step-5.ckpt")
    (output_dir / "dangling").symlink_to("nothing")
    (output_dir / "again").symlink_to(output_dir)
    (output_dir / "empty").mkdir()
    (output_dir / "step-5.ckpt").chmod(0o755)
    os.utime(output_dir / "step-5.ckpt", ns=(1, 1_000_000_001))
    snapshot = snapshots.take(output_dir, "5-1")
    assert read_all(snapshot) == {"step-5.ckpt": b"five"}
    content = snapshots.describe(snapshot)
    assert [(file.is_executable, file.mtime_ns) for file in content.files] == [(True, 1_000_000_001)]
    assert [(entry.path, entry.link_to) for entry in content.entries] == [
        ("again", "."),
        ("dangling", "nothing"),
        ("empty", None),
        ("last.ckpt", "step-5.ckpt"),
    ]


class Unrest:
    """What a thread of the script does between two looks of a snapshot at its folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *changes: Callable[[], object]) -> None:
        self.changes = list(changes)
        self.num_looks = 0
        look = snapshot_module.list_tree

        def look_and_change(*arguments: Any, **options: Any) -> Any:
            self.num_looks += 1
            found = look(*arguments, **options)
            if self.changes:
                self.changes.pop(0)()
            return found

        monkeypatch.setattr(snapshot_module, "list_tree", look_and_change)


def test_a_snapshot_has_the_files_of_one_moment(output_dir, snapshots, monkeypatch):
    """Older checkpoints are rotated away beside the training, and the next one is written, while it is taken."""
    for step in (1, 2, 3):
        write(output_dir / f"step-{step}" / "a.pt", b"x" * step)
        write(output_dir / f"step-{step}" / "b.pt", b"y" * step)

    def rotate(old: int, new: int) -> None:
        shutil.rmtree(output_dir / f"step-{old}")
        write(output_dir / f"step-{new}" / "a.pt", b"x" * new)

    unrest = Unrest(
        monkeypatch,
        lambda: rotate(1, 4),
        lambda: write(output_dir / "step-4" / "b.pt", b"y" * 4),
        lambda: shutil.rmtree(output_dir / "step-2"),
    )
    snapshot = snapshots.take(output_dir, "1-1")
    expected = {
        f"step-{step}/{name}.pt": content * step for step in (3, 4) for name, content in (("a", b"x"), ("b", b"y"))
    }
    assert read_all(snapshot) == expected
    assert [file.path for file in snapshots.describe(snapshot).files] == sorted(expected)
    assert {entry.path for entry in snapshot.entries} == {"step-3", "step-4"}
    assert unrest.num_looks == 5


def test_a_file_that_comes_and_goes_between_two_looks_does_no_harm(output_dir, snapshots, monkeypatch):
    write(output_dir / "model.pt", b"model")
    write(output_dir / "model.pt.tmp", b"half")
    unrest = Unrest(monkeypatch, (output_dir / "model.pt.tmp").unlink)
    assert read_all(snapshots.take(output_dir, "1-1")) == {"model.pt": b"model"}
    assert unrest.num_looks == 2


def test_the_time_that_large_files_take_is_no_unrest(output_dir, snapshots, monkeypatch):
    monkeypatch.setattr(snapshot_module, "_UNREST_TIMEOUT_S", 0.05)
    copy_files = snapshot_module._copy_files

    def copy_slowly(*arguments):
        # Longer than unrest may last.
        time.sleep(0.1)
        return copy_files(*arguments)

    monkeypatch.setattr(snapshot_module, "_copy_files", copy_slowly)
    write(output_dir / "model.pt", b"model")
    write(output_dir / "model.pt.tmp", b"half")
    Unrest(monkeypatch, (output_dir / "model.pt.tmp").unlink)
    assert read_all(snapshots.take(output_dir, "1-1")) == {"model.pt": b"model"}


def test_a_folder_without_a_moment_of_rest_makes_no_checkpoint(output_dir, snapshots, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot_module, "_UNREST_TIMEOUT_S", 0.2)
    write(output_dir / "model.pt", b"model")
    Unrest(monkeypatch, *[functools.partial(write, output_dir / f"{number}.pt", b"x") for number in range(1000)])
    with pytest.raises(
        OSError, match=r"come and go all the time, '\d+\.pt' for example, .* Write and delete files there"
    ):
        snapshots.take(output_dir, "1-1")
    assert list((tmp_path / "snapshots").iterdir()) == []


def test_what_is_deleted_at_any_moment_of_a_snapshot_is_in_it_as_a_whole_or_not(output_dir, snapshots):
    for number in range(200):
        write(output_dir / f"{number}.ckpt", b"x" * 1000)

    def delete_all() -> None:
        for number in range(200):
            (output_dir / f"{number}.ckpt").unlink()

    deleting = threading.Thread(target=delete_all)
    deleting.start()
    snapshot = snapshots.take(output_dir, "1-1")
    deleting.join()
    assert set(read_all(snapshot).values()) <= {b"x" * 1000}
    assert {file.path for file in snapshot.files} == set(read_all(snapshot))


def test_a_copy_that_fails_leaves_nothing_behind(output_dir, snapshots, tmp_path):
    write(output_dir / "large.pt", b"x" * 200_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            snapshots.take(output_dir, "1-1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "snapshots").iterdir()) == []
    assert read_all(snapshots.take(output_dir, "2-1")) == {"large.pt": b"x" * 200_000}
