"""What counts as saved has reached the disk, and before anything that counts on it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.trees import write_tree

from periflow_ray.jobs import JobState, write_state
from periflow_ray.runtime.member.uploads import bring_files
from periflow_ray.runtime.monitor.contract import Assignment
from periflow_ray.store.checkpoints import PlannedFile, commit, describe_tree, destroy_committed, merge_contents
from periflow_ray.store.checkpoints.imports import upload_checkpoint_dir
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import Transfer
from periflow_ray.sweeps.journal import Journal


class Disk:
    """Notes what happens to a directory, in order: paths that are synced, and deleted."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, str]] = []
        self._base = base
        sync, unlink = os.fsync, os.unlink

        def noted_sync(descriptor: int) -> None:
            sync(descriptor)
            self._note("sync", os.readlink(f"/proc/self/fd/{descriptor}"))

        def noted_unlink(path: str, **kwargs: int) -> None:
            unlink(path, **kwargs)
            self._note("delete", os.fspath(path))

        monkeypatch.setattr(os, "fsync", noted_sync)
        monkeypatch.setattr(os, "unlink", noted_unlink)

    def _note(self, kind: str, path: str) -> None:
        self.events.append((kind, os.path.relpath(path, self._base)))

    def synced(self) -> list[str]:
        return [path for kind, path in self.events if kind == "sync"]


@pytest.fixture
def root(tmp_path: Path) -> StorageRoot:
    return StorageRoot(str(tmp_path / "storage"))


@pytest.fixture
def disk(root: StorageRoot, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(root.local_path(""), monkeypatch)


def test_files_and_directories_are_durable_before_the_manifest_and_that_before_any_deletion(root, disk, tmp_path):
    write_tree(tmp_path / "source", {"model.pt": b"weights", "a/b/c.bin": b"3"})
    upload_checkpoint_dir(root, tmp_path / "source", "first")
    manifest_at = disk.synced().index("checkpoints/first/manifest.json")
    assert set(disk.synced()[:manifest_at]) >= {
        "checkpoints/first/files/model.pt",
        "checkpoints/first/files/a/b/c.bin",
        "checkpoints/first/files/a/b",
        "checkpoints/first/files/a",
        "checkpoints/first/files",
        "checkpoints/first",
        "checkpoints",
    }
    # The manifest's name is in its directory.
    assert "checkpoints/first" in disk.synced()[manifest_at:]
    destroy_committed(root, None, "first")
    assert ("delete", "checkpoints/first/files/model.pt") not in disk.events[: manifest_at + 1]


def test_what_is_copied_inside_the_root_keeps_its_new_names_too(root, disk, tmp_path):
    source = write_tree(tmp_path / "source", {"model.pt": b"weights"})
    (file,) = merge_contents({0: describe_tree(source)}).files
    bring_files(root, 1, Assignment("step-1", (file,)), source, Transfer(root))
    disk.events.clear()
    copied = PlannedFile(file.path, file.size, file.checksum, 0, file.key, copy_from=f"step-1/{file.key}")
    bring_files(root, 1, Assignment("step-2", (copied,)), source, Transfer(root))
    assert "jobs/1/checkpoints/step-2/files" in disk.synced()
    assert "jobs/1/checkpoints" in disk.synced()
    # Its content was synced under its other name.
    assert "jobs/1/checkpoints/step-2/files/model.pt" not in disk.synced()


def test_the_end_of_a_job_is_durable_and_its_signs_of_life_are_not_worth_it(root, disk):
    write_state(root, 1, JobState("running", heartbeat_unix_s=1.0))
    assert disk.synced() == []
    write_state(root, 1, JobState("success", ended_unix_s=2.0))
    assert "jobs/1/state.json" in disk.synced()


def test_who_accepts_the_risk_waits_for_no_disk(root, disk, tmp_path):
    write_tree(tmp_path / "source", {"model.pt": b"weights"})
    manifest = upload_checkpoint_dir(root.without_fsync(), tmp_path / "source", "first")
    commit(root.without_fsync(), manifest)
    assert disk.synced() == []


def test_the_lines_of_a_journal_are_durable_when_they_are_flushed(root, disk):
    journal = Journal(root, 7)
    journal.begin(1, 8, {"lr": 0.5}, "a")
    journal.flush()
    assert "jobs/7/journal/00000000" in disk.synced()
    num_synced = len(disk.synced())
    journal.flush()
    assert len(disk.synced()) == num_synced
    journal.end(1, "success", None, 1)
    journal.flush()
    assert disk.synced()[num_synced:].count("jobs/7/journal/00000000") == 1
