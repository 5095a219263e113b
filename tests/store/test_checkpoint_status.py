from __future__ import annotations

import pytest
from support.stored_checkpoints import CREATED_UNIX_S, STEP_10, STEP_20, save

from periflow_ray.errors import NotFoundError
from periflow_ray.jobs import JobState
from periflow_ray.jobs.checkpoint_status import CheckpointEntry, find_entry, list_all
from periflow_ray.store.checkpoints import begin, checkpoint_key, mark_failed, read_upload_note
from periflow_ray.store.checkpoints.trash import trash


def test_every_checkpoint_is_listed_with_what_became_of_it(root, tmp_path):
    committed = save(root, tmp_path, {0: {"model.pt": b"weights"}}, step=10)
    deleted = save(root, tmp_path, {0: {"model.pt": b"weights"}}, step=20)
    until_unix_s = trash(root, f"1/{STEP_20}")
    begin(root, 1, "step-00000030", step=30, attempt=1)
    mark_failed(root, 1, "step-00000030", "node 1 failed")
    begin(root, 1, "step-00000040", step=40, attempt=2)
    failed, uploading = (read_upload_note(root, 1, f"step-000000{step}") for step in (30, 40))
    assert list_all(root, 1) == [
        CheckpointEntry(1, STEP_10, "committed", 10, 7, None, CREATED_UNIX_S, None, {"loss": 0.5}, committed),
        CheckpointEntry(1, STEP_20, "deleted", 20, 7, None, CREATED_UNIX_S, until_unix_s, {"loss": 0.5}, deleted),
        CheckpointEntry(
            1, "step-00000030", "partial", 30, reason="node 1 failed", created_unix_s=failed.started_unix_s
        ),
        CheckpointEntry(1, "step-00000040", "uploading", 40, created_unix_s=uploading.started_unix_s),
    ]
    assert [find_entry(root, entry.checkpoint_id) for entry in list_all(root, 1)] == list_all(root, 1)
    assert list_all(root, 2) == []


def test_nothing_is_on_its_way_any_more_when_its_job_has_ended(root, add_job):
    add_job(root, 1, JobState("failed"))
    begin(root, 1, STEP_10, step=10, attempt=1)
    entry = find_entry(root, f"1/{STEP_10}")
    assert (entry.status, entry.reason) == ("partial", "the job ended before it was committed")


def test_files_that_nobody_speaks_for_are_a_partial_checkpoint(root):
    root.write_bytes(checkpoint_key(1, STEP_10, "files", "model.pt"), b"wei")
    root.write_bytes("jobs/1/checkpoints/notes.txt", b"not a checkpoint")
    assert list_all(root, 1) == [
        CheckpointEntry(1, STEP_10, "partial", 10, reason="nothing says that it is being uploaded")
    ]


@pytest.mark.parametrize("name", ["manifest.json", "deleted.json"])
def test_a_damaged_manifest_is_the_reason_why_a_checkpoint_is_partial(root, name):
    root.write_bytes(checkpoint_key(1, STEP_10, name), b"{")
    (entry,) = list_all(root, 1)
    assert (entry.status, entry.step) == ("partial", 10)
    assert str(entry.reason).startswith(f"the manifest 'jobs/1/checkpoints/{STEP_10}/{name}' is damaged: ")


def test_an_unknown_id_is_an_error(root):
    for checkpoint_id in (f"1/{STEP_10}", "resnet", "../x"):
        with pytest.raises(NotFoundError, match=f"^checkpoint '{checkpoint_id}' does not exist."):
            find_entry(root, checkpoint_id)
