"""A driver whose job's plan or state it cannot use ends before it asks Ray for anything."""

from __future__ import annotations

import pytest

from periflow_ray import __version__
from periflow_ray.plan import JobPlan, build_plan, find_vm
from periflow_ray.runtime import driver
from periflow_ray.spec import JobSpec
from periflow_ray.store.documents import write_document
from periflow_ray.store.root import StorageRoot

VM = "azure-16gb-v100-1g-eastus-spot"


def make_plan(root: StorageRoot) -> JobPlan:
    job_setting = {"type": "custom", "docker": {"command": "true"}}
    spec = JobSpec.model_validate({"name": "digits", "vm": VM, "num_devices": 1, "job_setting": job_setting})
    return build_plan(spec, find_vm(VM), storage_uri=root.uri)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b'{"format": 1, "name": "ci',
            "is damaged: Unterminated string starting at: line 1 column 23 (char 22). Put a",
        ),
        (
            b'{"format": 1, "name": null}',
            "is damaged: it has no 'experiment', it has no 'vm', it has no 'num_devices',",
        ),
        (b'{"format": 2}', f"has format 2, and this version of periflow-ray ({__version__}) reads format 1. A later"),
    ],
    ids=["torn", "less", "newer"],
)
def test_a_plan_that_cannot_be_read_is_named(tmp_path, monkeypatch, content, reason):
    root = StorageRoot(str(tmp_path))
    root.write_bytes("jobs/1/plan.json", content)
    monkeypatch.setattr("sys.argv", ["driver", "--storage", root.uri, "--job-id", "1"])
    with pytest.raises(SystemExit) as caught:
        driver.main()
    assert str(caught.value.code).startswith(f"'jobs/1/plan.json' in storage root '{root.uri}' {reason}")


def test_a_state_that_a_later_version_wrote_is_named(tmp_path, monkeypatch):
    root = StorageRoot(str(tmp_path))
    write_document(root, "jobs/1/plan.json", make_plan(root))
    root.write_json("jobs/1/state.json", {"format": 2})
    monkeypatch.setattr("sys.argv", ["driver", "--storage", root.uri, "--job-id", "1"])
    with pytest.raises(SystemExit) as caught:
        driver.main()
    assert str(caught.value.code).startswith(f"'jobs/1/state.json' in storage root '{root.uri}' has format 2, ")


def test_a_damaged_record_is_told_and_the_job_goes_on_by_its_plan(tmp_path):
    root = StorageRoot(str(tmp_path))
    root.write_bytes("jobs/1/job.json", b'{"format": 1, "job')
    notes: list[str] = []
    record = driver._read_record(root, 1, make_plan(root), notes.append)
    assert (record.job_id, record.name, record.vm, record.num_devices) == (1, "digits", VM, 1)
    (note,) = notes
    assert note.startswith(f"the job goes on without its record: 'jobs/1/job.json' in storage root '{root.uri}' is dam")
