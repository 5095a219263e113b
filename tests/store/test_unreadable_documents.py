"""What lists and decisions make of documents that cannot be read."""

from __future__ import annotations

import pytest
from document_kinds import MANIFEST, STEP_10, attempt

from periflow_ray.errors import DamagedDocumentError, DocumentError, NewerFormatError, NotFoundError
from periflow_ray.jobs import JobProgress, JobState, list_jobs, read_progress, read_record, read_state
from periflow_ray.jobs.attempts import read_attempts, write_attempt
from periflow_ray.jobs.checkpoint_status import find_entry, list_all
from periflow_ray.jobs.experiments import create_experiment, list_experiments, read_experiment
from periflow_ray.store.checkpoints import commit, latest_committed, list_committed, read_manifest
from periflow_ray.store.checkpoints.trash import purge
from periflow_ray.store.datasets import Dataset, list_datasets, read_dataset
from periflow_ray.store.documents import write_document


def test_lists_show_the_rest_and_tell_of_what_cannot_be_read(root, add_job):
    for job_id in (1, 2, 3):
        add_job(root, job_id, JobState("stopped"))
        write_attempt(root, 1, attempt(job_id))
        create_experiment(root, f"exp-{job_id}")
        write_document(root, f"datasets/set-{job_id}/dataset.json", Dataset(f"set-{job_id}", "/x", 1.0, True))
    damaged = ["jobs/2/state.json", "jobs/1/attempts/2.json", "experiments/exp-2.json", "datasets/set-2/dataset.json"]
    for key in damaged:
        root.write_bytes(key, b"{")
    told: list[DocumentError] = []
    assert [job.record.job_id for job in list_jobs(root, told.append)] == [3, 1]
    assert [record.number for record in read_attempts(root, 1, told.append)] == [1, 3]
    assert [experiment.name for experiment in list_experiments(root, told.append)] == ["exp-1", "exp-3"]
    assert [dataset.name for dataset in list_datasets(root, told.append)] == ["set-1", "set-3"]
    assert [str(err).partition(" ")[0] for err in told] == [f"'{key}'" for key in damaged]
    # Who lists them for a decision, and cannot tell anybody, gets none at all.
    for read in (list_jobs, list_experiments, list_datasets, lambda root: read_attempts(root, 1)):
        with pytest.raises(DamagedDocumentError):
            read(root)


def test_a_checkpoint_that_a_later_version_committed_is_neither_taken_for_damaged_nor_passed_over(root):
    commit(root, MANIFEST)
    key = "jobs/1/checkpoints/step-00000020/manifest.json"
    root.write_json(key, {"format": 2, "parts": []})
    (readable, newer) = list_all(root, 1)
    assert readable.manifest == MANIFEST
    assert (newer.status, newer.step, newer.manifest) == ("committed", 20, None)
    assert str(newer.reason).startswith(f"the manifest '{key}' has format 2, ")
    assert find_entry(root, "1/step-00000020") == newer
    assert list_committed(root, 1) == [MANIFEST]
    with pytest.raises(NewerFormatError):
        latest_committed(root, 1)


def test_a_deleted_checkpoint_of_a_later_version_is_not_purged(root):
    key = f"jobs/1/checkpoints/{STEP_10}/deleted.json"
    root.write_json(key, {"format": 2, "until": 1.0})
    (entry,) = list_all(root, 1)
    assert (entry.status, entry.restorable_until_unix_s) == ("deleted", None)
    assert purge(root, 1, 2_000_000_000.0) == []
    assert root.exists(key)


def test_the_damaged_state_of_a_job_does_not_hide_its_checkpoints(root):
    commit(root, MANIFEST)
    root.write_bytes("jobs/1/state.json", b"{")
    assert [entry.manifest for entry in list_all(root, 1)] == [MANIFEST]


def test_what_does_not_exist_is_still_not_found(root):
    for read in (
        lambda: read_record(root, 1),
        lambda: read_state(root, 1),
        lambda: read_experiment(root, "vision"),
        lambda: read_dataset(root, "pets"),
        lambda: read_manifest(root, 1, STEP_10),
    ):
        with pytest.raises(NotFoundError):
            read()
    assert read_progress(root, 1) == JobProgress()
