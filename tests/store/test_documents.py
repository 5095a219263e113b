"""Every kind of stored document: with more, with less, cut short, and of a format that is still to come."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from periflow_ray import __version__
from periflow_ray.errors import (
    CorruptCheckpointError,
    DamagedDocumentError,
    DocumentError,
    NewerFormatError,
    NotFoundError,
)
from periflow_ray.jobs import (
    JobProgress,
    JobRecord,
    JobState,
    list_jobs,
    read_progress,
    read_record,
    read_state,
    write_progress,
    write_record,
    write_state,
)
from periflow_ray.jobs.attempts import AttemptRecord, SaveRecord, read_attempts, write_attempt
from periflow_ray.jobs.checkpoint_status import find_entry, list_all
from periflow_ray.jobs.experiments import create_experiment, list_experiments, read_experiment
from periflow_ray.jobs.requests import post_request, take_requests
from periflow_ray.jobs.resumes import claim_resume, read_resumed_attempts
from periflow_ray.plan import JobPlan, build_plan, find_vm
from periflow_ray.spec import JobSpec
from periflow_ray.store.checkpoints import (
    Manifest,
    StoredFile,
    UploadNote,
    begin,
    commit,
    hide,
    latest_committed,
    list_committed,
    read_manifest,
    read_upload_note,
)
from periflow_ray.store.checkpoints.trash import purge_expired, read_deleted
from periflow_ray.store.datasets import (
    Dataset,
    link_dataset,
    list_dataset_files,
    list_datasets,
    read_dataset,
    upload_dataset,
)
from periflow_ray.store.datasets.files import DatasetFile
from periflow_ray.store.datasets.uploading import UploadJournal
from periflow_ray.store.documents import (
    dump_document,
    parse_document,
    parse_entries,
    read_document,
    write_document,
)
from periflow_ray.store.root import StorageRoot
from periflow_ray.submit.local_cluster import LocalCluster, LocalClusterDir

STEP_10 = "step-00000010"
MANIFEST = Manifest(
    checkpoint=STEP_10,
    job_id=1,
    step=10,
    attempt=1,
    world_size=2,
    num_nodes=1,
    created_unix_s=1_700_000_000.5,
    files=(StoredFile("model.pt", 7, "xxh3:1", 0, "files/model.pt"), StoredFile("rng", 1, "xxh3:2", 0, "files/rng")),
    metrics={"loss": 0.5},
)
PLAN = build_plan(
    JobSpec.model_validate(
        {
            "vm": "azure-16gb-v100-4g-eastus",
            "num_devices": 4,
            "job_setting": {"type": "custom", "docker": {"command": "python main.py", "env_var": {"SEED": "1"}}},
            "checkpoint": {
                "output_checkpoint_dir": "/ckpt",
                "input": {"id": "3/step-00000010", "mount_path": "/start"},
                "keep_best": {"metric": "loss", "mode": "min"},
            },
            "data": {"name": "cifar", "mount_path": "/data"},
            "plugin": {"slack": {"channel": "#jobs", "credential_id": "team"}},
        }
    ),
    find_vm("azure-16gb-v100-4g-eastus"),
    storage_uri="/data",
)
JOURNAL = {"upload_id": "u", "started_unix_s": 1.0, "files": [{"path": "a", "size": 1, "checksum": "xxh3:1"}]}
# What users put into these is theirs: nothing in it is a field of the document.
FREE_FIELDS = {"metrics", "metadata", "env"}


@dataclass(frozen=True)
class Kind:
    """A kind of document: ``write`` stores one at ``key``, ``read`` is how the product reads it.

    ``needs`` is a field without which it cannot be read, ``named`` how the error names it. Where ``damaged`` or
    ``too_new`` is a value, that is what reading gives then, instead of an error.
    """

    key: str
    write: Callable[[StorageRoot], object]
    read: Callable[[StorageRoot], object]
    needs: tuple[str | int, ...] = ()
    named: str = ""
    damaged: object = DamagedDocumentError
    too_new: object = NewerFormatError


def job_record(job_id: int = 1) -> JobRecord:
    return JobRecord(job_id, "cifar", None, "local", "CPU", 2, 2, None, "ada", 1_700_000_000.0)


def attempt(number: int = 1) -> AttemptRecord:
    save = SaveRecord(30.0, 5, 2.5)
    return AttemptRecord(number, 2, 2, 1.0, 2.0, 9.0, 10.0, 0, 5, 5, "preemption", "node 1 goes", save)


KINDS = {
    "job": Kind(
        "jobs/1/job.json",
        lambda root: write_record(root, job_record()),
        lambda root: read_record(root, 1),
        ("vm",),
        "vm",
    ),
    "state": Kind(
        "jobs/1/state.json",
        lambda root: write_state(root, 1, JobState("stopped", 1.0, 2.0, 2.0, 3, "on request")),
        lambda root: read_state(root, 1),
        ("status",),
        "status",
    ),
    "progress": Kind(
        "jobs/1/progress.json",
        lambda root: write_progress(root, 1, JobProgress(5, 10, 1.5, {"loss": 1.0})),
        lambda root: read_progress(root, 1),
    ),
    "attempt": Kind(
        "jobs/1/attempts/1.json",
        lambda root: write_attempt(root, 1, attempt()),
        lambda root: read_attempts(root, 1),
        ("save", "notice_s"),
        "save.notice_s",
    ),
    "experiment": Kind(
        "experiments/vision.json",
        lambda root: create_experiment(root, "vision"),
        lambda root: read_experiment(root, "vision"),
        ("created_unix_s",),
        "created_unix_s",
    ),
    "dataset": Kind(
        "datasets/pets/dataset.json",
        lambda root: link_dataset(root, "pets", str(Path(root.uri).parent), {"labels": ["cat", "dog"]}),
        lambda root: read_dataset(root, "pets"),
        ("uri",),
        "uri",
    ),
    "upload of a dataset": Kind(
        "datasets/pets/uploading.json",
        lambda root: write_document(root, "datasets/pets/uploading.json", JOURNAL, kind=UploadJournal),
        lambda root: read_document(root, "datasets/pets/uploading.json", UploadJournal),
        ("files", 0, "size"),
        "files[0].size",
    ),
    "plan": Kind(
        "jobs/1/plan.json",
        lambda root: write_document(root, "jobs/1/plan.json", PLAN),
        lambda root: read_document(root, "jobs/1/plan.json", JobPlan),
        ("vm", "instance_type"),
        "vm.instance_type",
    ),
    "manifest": Kind(
        f"jobs/1/checkpoints/{STEP_10}/manifest.json",
        lambda root: commit(root, MANIFEST),
        lambda root: read_manifest(root, 1, STEP_10),
        ("files", 1, "checksum"),
        "files[1].checksum",
        damaged=CorruptCheckpointError,
    ),
    "deleted checkpoint": Kind(
        f"jobs/1/checkpoints/{STEP_10}/deleted.json",
        lambda root: hide(root, MANIFEST, 2_000_000_000.0),
        lambda root: read_deleted(root, 1, STEP_10),
        ("restorable_until_unix_s",),
        "restorable_until_unix_s",
        damaged=CorruptCheckpointError,
    ),
    "checkpoint on its way": Kind(
        f"jobs/1/checkpoints/{STEP_10}/uploading.json",
        lambda root: begin(root, 1, STEP_10, 10, 1),
        lambda root: read_upload_note(root, 1, STEP_10),
        damaged=UploadNote(step=10),
        too_new=UploadNote(step=10),
    ),
    "resume": Kind(
        "jobs/1/resumes/driver-0.json",
        lambda root: claim_resume(root, 1, "driver", 2),
        lambda root: (claim_resume(root, 1, "driver", 2), read_resumed_attempts(root, 1)),
        ("time_unix_s",),
        "time_unix_s",
    ),
    "request": Kind(
        "jobs/1/requests",
        lambda root: post_request(root, 1, "stop", timeout_s=60.0),
        lambda root: [(request.kind, request.fields["timeout_s"]) for request in take_requests(root, 1)],
        damaged=[],
        too_new=[],
    ),
    "embedded cluster": Kind(
        "cluster.json",
        lambda root: LocalClusterDir(cluster_dir(root)).write(LocalCluster("http://127.0.0.1:8265", 7)),
        lambda root: LocalClusterDir(root.local_path("")).read(),
        damaged=None,
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def cluster_dir(root: StorageRoot) -> Path:
    root.local_path("").mkdir(parents=True, exist_ok=True)
    return root.local_path("")


def find_key(root: StorageRoot, kind: Kind) -> str:
    """The document's key; a request's has a random name."""
    return kind.key if kind.key.endswith(".json") else f"{kind.key}/{root.list_names(kind.key)[0]}"


def add_fields(document: Any) -> Any:
    """The document as a later version might write it, with a field more in every object."""
    if isinstance(document, list):
        return [add_fields(entry) for entry in document]
    if not isinstance(document, dict):
        return document
    known = {name: value if name in FREE_FIELDS else add_fields(value) for name, value in document.items()}
    return {**known, "of_a_later_version": {"a": [1]}}


def check_refused(kind: Kind, root: StorageRoot, key: str, expected: object) -> str:
    """Read what cannot be read, and return the error's text; empty where there is to be none."""
    if isinstance(expected, type) and issubclass(expected, Exception):
        with pytest.raises(expected) as caught:
            kind.read(root)
        assert key in str(caught.value)
        return str(caught.value)
    assert kind.read(root) == expected
    return ""


@every_kind
def test_a_document_says_its_format(local_root, kind):
    kind.write(local_root)
    assert json.loads(local_root.read_bytes(find_key(local_root, kind)))["format"] == 1


@every_kind
def test_a_document_without_a_format_has_the_first_one(local_root, kind):
    kind.write(local_root)
    key = find_key(local_root, kind)
    content = local_root.read_bytes(key)
    expected = kind.read(local_root)
    document = json.loads(content)
    del document["format"]
    local_root.write_json(key, document)
    assert kind.read(local_root) == expected


@every_kind
def test_fields_of_a_later_version_are_ignored_at_every_level(local_root, kind):
    kind.write(local_root)
    key = find_key(local_root, kind)
    content = local_root.read_bytes(key)
    expected = kind.read(local_root)
    local_root.write_json(key, add_fields(json.loads(content)))
    assert kind.read(local_root) == expected


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.needs], ids=lambda kind: kind.key)
def test_a_field_that_is_missing_is_named_with_the_documents_key(local_root, kind):
    kind.write(local_root)
    document = inner = json.loads(local_root.read_bytes(kind.key))
    *path, name = kind.needs
    for step in path:
        inner = inner[step]
    del inner[name]
    local_root.write_json(kind.key, document)
    text = check_refused(kind, local_root, kind.key, kind.damaged)
    assert f" is damaged: it has no '{kind.named}'" in text


@every_kind
def test_a_document_that_was_cut_short_is_named(local_root, kind):
    kind.write(local_root)
    key = find_key(local_root, kind)
    content = local_root.read_bytes(key)
    for num_bytes in range(0, len(content), max(1, len(content) // 100)):
        local_root.write_bytes(key, content[:num_bytes])
        check_refused(kind, local_root, key, kind.damaged)


@every_kind
@pytest.mark.parametrize(
    "content",
    [b"null", b"3", b'"text"', b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": "new"}', b'{"format": 0}', b"\0" * 512],
    ids=["null", "number", "text", "list", "bytes", "nested", "format text", "format 0", "zeros"],
)
def test_what_is_no_document_at_all_is_named(local_root, kind, content):
    kind.write(local_root)
    key = find_key(local_root, kind)
    local_root.write_bytes(key, content)
    check_refused(kind, local_root, key, kind.damaged)


@every_kind
def test_a_newer_format_is_refused_with_what_reads_it(local_root, kind):
    kind.write(local_root)
    key = find_key(local_root, kind)
    # Nothing else in it need be known.
    local_root.write_json(key, {"format": 2, "format_since": "0.4.0", "state": 3})
    text = check_refused(kind, local_root, key, kind.too_new)
    assert not text or text.endswith(
        f" has format 2, and this version of periflow-ray ({__version__}) reads format 1. "
        "Version 0.4.0 or later reads it: pip install --upgrade periflow-ray"
    )


def test_an_error_names_the_root_and_says_what_to_do(root):
    root.write_bytes("jobs/1/state.json", b'{"status": "runn')
    with pytest.raises(DamagedDocumentError) as caught:
        read_state(root, 1)
    assert str(caught.value) == (
        f"'jobs/1/state.json' in storage root '{root.uri}' is damaged: Unterminated string starting at: "
        "line 1 column 12 (char 11). Put a copy of it back, or delete it."
    )


def test_a_document_that_lacks_much_is_told_in_one_line(root):
    root.write_json("jobs/1/job.json", {"format": 1, "job_id": 1})
    with pytest.raises(DamagedDocumentError) as caught:
        read_record(root, 1)
    assert "is damaged: it has no 'name', it has no 'experiment', it has no 'vm', and 6 more. Put" in str(caught.value)


@pytest.mark.parametrize("save", [3, "none", [1], True])
def test_a_part_that_is_no_object_is_named(root, save):
    write_attempt(root, 1, attempt())
    document = root.read_json("jobs/1/attempts/1.json")
    root.write_json("jobs/1/attempts/1.json", {**document, "save": save})
    with pytest.raises(DamagedDocumentError, match=r"attempts/1.json' .* is damaged: 'save' is .*, not a JSON object"):
        read_attempts(root, 1)


def test_a_value_that_a_plan_cannot_have_is_named(root):
    document = {**json.loads(dump_document(PLAN)), "launch_mode": "rack"}
    root.write_json("jobs/1/plan.json", document)
    with pytest.raises(DamagedDocumentError, match=r"plan.json' .* is damaged: 'launch_mode': Input should be 'node'"):
        read_document(root, "jobs/1/plan.json", JobPlan)


@dataclass(frozen=True)
class Paper:
    title: str
    tags: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class PaperOfTomorrow:
    """The same kind, changed so that nobody reads it by the old rules."""

    FORMAT: ClassVar[int] = 2
    FORMAT_SINCE: ClassVar[str] = "0.4.0"

    title_in_parts: tuple[str, ...] = ()
    title: str | None = None


def test_a_kind_whose_format_went_up_says_since_when_and_still_reads_the_old_one():
    old, new = Paper("Adam"), PaperOfTomorrow(("Ad", "am"))
    assert json.loads(dump_document(new)) == {
        "format": 2,
        "format_since": "0.4.0",
        "title_in_parts": ["Ad", "am"],
        "title": None,
    }
    assert parse_document(PaperOfTomorrow, dump_document(old), "'paper'") == PaperOfTomorrow(title="Adam")
    with pytest.raises(NewerFormatError, match=r"^'paper' has format 2, .* Version 0\.4\.0 or later reads it"):
        parse_document(Paper, dump_document(new), "'paper'")
    with pytest.raises(NewerFormatError, match=r"format 3, .* reads formats 1 to 2\. A later version reads it"):
        parse_document(PaperOfTomorrow, b'{"format": 3}', "'paper'")


def test_the_files_of_a_dataset_are_a_list_whose_entries_age_like_documents(root):
    files = (DatasetFile("a", 1, "xxh3:1"), DatasetFile("b", 2))
    entries = [{"path": "a", "size": 1, "checksum": "xxh3:1", "mode": "0644"}, {"path": "b", "size": 2}]
    assert parse_entries(DatasetFile, json.dumps(entries).encode(), "'files.json'") == files
    for content, reason in (
        (json.dumps([*entries, {"path": "c"}]).encode(), r"it has no '\[2\].size'"),
        (b"[3]", r"'\[0\]' is a number, not a JSON object"),
        (b"{}", "it is an object, not a list"),
        (json.dumps(entries).encode()[:40], "Unterminated string"),
    ):
        with pytest.raises(DamagedDocumentError, match=f"^'files.json' is damaged: {reason}"):
            parse_entries(DatasetFile, content, "'files.json'")
    with pytest.raises(NewerFormatError, match=r"^'files\.json' has format 2, "):
        parse_entries(DatasetFile, b'{"format": 2, "files": []}', "'files.json'")


def test_a_dataset_whose_list_of_files_is_damaged_is_named(local_root, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"a")
    upload_dataset(local_root, "pets", tmp_path / "source", contents_only=True)
    local_root.write_bytes("datasets/pets/files.json", b'[{"path": "a"')
    with pytest.raises(DamagedDocumentError, match=r"^'datasets/pets/files\.json' in storage root "):
        list_dataset_files(local_root, read_dataset(local_root, "pets"))


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
    assert purge_expired(root, 1, 2_000_000_000.0) == []
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
