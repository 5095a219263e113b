"""Every kind of stored document: how the product writes it and reads it, and what becomes of a damaged one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from periflow_ray.credentials import (
    CREDENTIALS_FILE_VARIABLE,
    Credential,
    create_credential,
    list_credentials,
)
from periflow_ray.errors import (
    CorruptCheckpointError,
    DamagedDocumentError,
    NewerFormatError,
)
from periflow_ray.jobs import (
    JobProgress,
    JobRecord,
    JobState,
    read_progress,
    read_record,
    read_state,
    write_progress,
    write_record,
    write_state,
)
from periflow_ray.jobs.attempts import AttemptRecord, SaveRecord, read_attempts, write_attempt
from periflow_ray.jobs.experiments import create_experiment, read_experiment
from periflow_ray.jobs.requests import StopRequest, UnknownRequest, post_request, take_requests
from periflow_ray.jobs.resumes import claim_resume, read_resumed_attempts
from periflow_ray.plan import JobPlan, build_plan, find_vm
from periflow_ray.spec import JobSpec
from periflow_ray.store.checkpoints import (
    Manifest,
    StoredFile,
    UploadNote,
    begin,
    commit,
    put_into_trash,
    read_manifest,
    read_upload_note,
)
from periflow_ray.store.checkpoints.damage import read_damaged, set_aside
from periflow_ray.store.checkpoints.trash import read_trashed
from periflow_ray.store.datasets import (
    link_dataset,
    read_dataset,
)
from periflow_ray.store.datasets.uploading import UploadJournal
from periflow_ray.store.documents import (
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
FREE_FIELDS = {"metrics", "metadata", "env", "values"}
# The names in these are no fields either, but there is a document behind each.
NAMED_FIELDS = {"credentials"}


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


def cluster_dir(root: StorageRoot) -> Path:
    root.local_path("").mkdir(parents=True, exist_ok=True)
    return root.local_path("")


@contextmanager
def credentials_in(root: StorageRoot) -> Iterator[None]:
    """This user's credentials are in this root, where only the user reads them."""
    path = root.local_path("credentials.json")
    if path.exists():
        path.chmod(0o600)
    with mock.patch.dict(os.environ, {CREDENTIALS_FILE_VARIABLE: str(path)}):
        yield


def write_credential(root: StorageRoot) -> None:
    with credentials_in(root):
        create_credential("team", "wandb", {"api_key": "k"})


def read_credentials(root: StorageRoot) -> list[Credential]:
    with credentials_in(root):
        return list_credentials()


def _set_aside(root: StorageRoot) -> None:
    commit(root, MANIFEST)
    set_aside(root, 1, STEP_10, "'model.pt' differs")


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
        lambda root: put_into_trash(root, MANIFEST, 2_000_000_000.0),
        lambda root: read_trashed(root, 1, STEP_10),
        ("restorable_until_unix_s",),
        "restorable_until_unix_s",
        damaged=CorruptCheckpointError,
    ),
    "damaged checkpoint": Kind(
        f"jobs/1/checkpoints/{STEP_10}/damaged.json",
        _set_aside,
        lambda root: read_damaged(root, 1, STEP_10),
        ("reason",),
        "reason",
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
        lambda root: read_resumed_attempts(root, 1),
        ("time_unix_s",),
        "time_unix_s",
    ),
    "request": Kind(
        "jobs/1/requests",
        lambda root: post_request(root, 1, StopRequest(60.0)),
        lambda root: ["unknown" if isinstance(asked, UnknownRequest) else asked for asked in take_requests(root, 1)],
        damaged=[],
        too_new=["unknown"],
    ),
    "credentials": Kind(
        "credentials.json",
        write_credential,
        read_credentials,
        ("credentials", "team", "values"),
        "credentials.team.values",
    ),
    "embedded cluster": Kind(
        "cluster.json",
        lambda root: LocalClusterDir(cluster_dir(root)).write(LocalCluster("http://127.0.0.1:8265", 7)),
        lambda root: LocalClusterDir(root.local_path("")).read(),
        damaged=None,
    ),
}
