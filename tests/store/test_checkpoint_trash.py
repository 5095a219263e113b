from __future__ import annotations

import time

import pytest
from support.stored_checkpoints import STEP_10, STEP_20, BreakingRoot, save
from support.trees import read_tree

from periflow_ray.errors import CorruptCheckpointError, NotFoundError, StorageError, UsageError
from periflow_ray.store.checkpoints import (
    begin,
    checkpoint_key,
    find_checkpoint,
    latest_committed,
    list_committed,
    restore,
    sweep,
    verify,
)
from periflow_ray.store.checkpoints.trash import purge, read_trashed, trash, untrash

ID = f"1/{STEP_10}"
CONTENTS = {0: {"a.pt": b"aa", "b.pt": b"bb"}, 1: {"a.pt": b"11", "b.pt": b"bb"}}


def test_a_deleted_checkpoint_is_not_found_or_resumed_from_but_can_be_undeleted(root, tmp_path):
    older = save(root, tmp_path, CONTENTS, step=10)
    manifest = save(root, tmp_path, CONTENTS, step=20)
    until_unix_s = trash(root, manifest.checkpoint_id, keep_s=3600)
    assert until_unix_s == pytest.approx(time.time() + 3600, abs=60)
    assert latest_committed(root, 1) == older
    with pytest.raises(NotFoundError) as caught:
        find_checkpoint(root, f"1/{STEP_20}")
    assert str(caught.value) == (
        f"checkpoint '1/{STEP_20}' is deleted. Take that back: periflow-ray checkpoint undelete 1/{STEP_20}"
    )
    trashed = read_trashed(root, 1, STEP_20)
    assert (trashed.manifest, trashed.restorable_until_unix_s) == (manifest, until_unix_s)
    assert untrash(root, f"1/{STEP_20}") == manifest
    assert latest_committed(root, 1) == manifest
    restore(root, manifest, 1, tmp_path / "ckpt")
    assert read_tree(tmp_path / "ckpt") == CONTENTS[1]
    assert "deleted.json" not in root.list_names(checkpoint_key(1, STEP_20))


def test_the_files_stay_for_seven_days_and_no_longer(root, tmp_path):
    save(root, tmp_path, CONTENTS)
    kept = save(root, tmp_path, CONTENTS, step=20)
    until_unix_s = trash(root, ID)
    assert until_unix_s == pytest.approx(time.time() + 7 * 24 * 3600, abs=60)
    assert purge(root, 1, until_unix_s - 1) == []
    assert purge(root, 1, until_unix_s) == [STEP_10]
    assert {key.partition("/")[0] for key in root.list_files("jobs/1/checkpoints")} == {STEP_20}
    assert list_committed(root, 1) == [kept]
    assert verify(root, kept) == []
    with pytest.raises(NotFoundError, match="does not exist"):
        untrash(root, ID)


def test_a_checkpoint_whose_time_is_over_cannot_be_undeleted_even_if_it_is_not_purged_yet(root, tmp_path):
    save(root, tmp_path, CONTENTS)
    until_unix_s = trash(root, ID)
    with pytest.raises(NotFoundError) as caught:
        untrash(root, ID, now_unix_s=until_unix_s)
    assert str(caught.value) == f"checkpoint '{ID}' cannot be undeleted any more: its time is over"


def test_only_a_deleted_checkpoint_can_be_undeleted(root, tmp_path):
    save(root, tmp_path, CONTENTS)
    with pytest.raises(UsageError, match=f"^checkpoint '{ID}' is not deleted; there is nothing to undelete.$"):
        untrash(root, ID)
    begin(root, 1, STEP_20, step=20, attempt=1)
    with pytest.raises(NotFoundError, match="it is still being uploaded"):
        untrash(root, f"1/{STEP_20}")
    with pytest.raises(NotFoundError, match="does not exist"):
        untrash(root, "no such id")


def test_only_a_committed_checkpoint_can_be_deleted(root, tmp_path):
    save(root, tmp_path, CONTENTS)
    trash(root, ID)
    with pytest.raises(NotFoundError, match="is deleted"):
        trash(root, ID)
    with pytest.raises(NotFoundError, match="does not exist"):
        trash(root, f"1/{STEP_20}")


def test_a_deleted_checkpoint_that_lost_a_file_does_not_come_back(root, tmp_path):
    save(root, tmp_path, CONTENTS)
    trash(root, ID)
    root.delete(checkpoint_key(1, STEP_10, "node-1", "a.pt"))
    with pytest.raises(CorruptCheckpointError) as caught:
        untrash(root, ID)
    assert str(caught.value) == f"checkpoint '{ID}' cannot be undeleted: 'node-1/a.pt' is missing"
    assert list_committed(root, 1) == []


def test_a_new_attempt_leaves_deleted_checkpoints_alone(root, tmp_path):
    manifest = save(root, tmp_path, CONTENTS)
    trash(root, ID)
    assert sweep(root, 1, "attempt 1 ended").given_up == []
    assert untrash(root, ID) == manifest


@pytest.mark.parametrize("num_changes", range(8))
def test_wherever_deleting_breaks_off_the_checkpoint_is_whole_and_can_be_had_back(root, tmp_path, num_changes):
    manifest = save(root, tmp_path, CONTENTS)
    breaking = BreakingRoot(root.uri, num_changes)
    try:
        until_unix_s = trash(breaking, ID)
        untrash(breaking, ID)
        trash(breaking, ID)
    except StorageError:
        until_unix_s = 0.0
    # One of the two, never neither: committed and whole, or deleted and whole.
    if not list_committed(root, 1):
        assert until_unix_s == 0 or until_unix_s > time.time()
        untrash(root, ID)
    assert list_committed(root, 1) == [manifest]
    assert verify(root, manifest) == []


@pytest.mark.parametrize("num_changes", range(5))
def test_wherever_a_purge_breaks_off_the_next_one_goes_on(root, tmp_path, num_changes):
    save(root, tmp_path, CONTENTS)
    until_unix_s = trash(root, ID)
    try:
        purge(BreakingRoot(root.uri, num_changes), 1, until_unix_s)
    except StorageError:
        assert list_committed(root, 1) == []
        purge(root, 1, until_unix_s)
    assert root.list_files("jobs/1/checkpoints") == {}


def test_a_purge_leaves_a_committed_checkpoint_alone_whatever_stands_beside_its_manifest(root, tmp_path):
    manifest = save(root, tmp_path, CONTENTS)
    # As a restore leaves it that was cut short.
    content = root.read_bytes(checkpoint_key(1, STEP_10, "manifest.json"))
    until_unix_s = trash(root, ID)
    root.write_bytes(checkpoint_key(1, STEP_10, "manifest.json"), content)
    assert purge(root, 1, until_unix_s + 1) == []
    assert verify(root, manifest) == []
