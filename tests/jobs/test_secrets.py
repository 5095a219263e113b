"""The key of a job's sealed secrets, on real Ray clusters: only the job's driver has it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.workbench import Workbench

from periflow_ray.errors import StorageError
from periflow_ray.jobs.sealed_secrets import KEY_VARIABLE, unseal
from periflow_ray.plan import build_plan, local_vm
from periflow_ray.spec import JobSpec
from periflow_ray.store.root import StorageRoot
from periflow_ray.submit.jobs import submit_job
from periflow_ray.submit.local_cluster import find_local_cluster
from periflow_ray.submit.workspace import scan_workspace

pytestmark = pytest.mark.ray

WriteJob = Callable[..., tuple[Path, Path]]
SECRET = "correct-horse-battery"
TOKEN = "hf_" + "a1B2c3D4" * 4

# Looks into every process of its cluster that has the key's name in its environment, as a curious script would.
SCRIPT = """
import os
from pathlib import Path
print("plain", os.environ.get("PLAIN"), "secret", os.environ["MY_SECRET"], len(os.environ["MY_SECRET"]))
cluster = f"RAY_AUTH_TOKEN_PATH={os.environ['PERIFLOW_LOCAL_CLUSTER_DIR']}/token"

def read(pid, name):
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace").split(chr(0))
    except OSError:
        return []

pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
environments = {pid: read(pid, "environ") for pid in pids}
workers = {pid: "".join(read(pid, "cmdline")) for pid in pids if cluster in environments[pid]}
workers = {pid: title for pid, title in workers.items() if title.startswith("ray::")}
ancestors, pid = [], os.getppid()
while pid > 1:
    ancestors.append(pid)
    pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
print("workers above:", sum(pid in workers for pid in ancestors))
print("workers:", sorted(title.split("(")[0] for title in workers.values()))
for pid in workers:
    for variable in environments[pid]:
        if variable.startswith("PERIFLOW_" + "SECRETS_KEY="):
            print(workers[pid], "has", variable)
"""


def opens(root: StorageRoot, job_id: int, text: str) -> bool:
    """Whether anything in a text is the key of the job's secrets."""
    for candidate in re.findall(r"[\w-]{43}=", text):
        try:
            unseal(root, job_id, candidate)
        except StorageError:
            continue
        return True
    return False


def read_stored(root: StorageRoot, job_id: int) -> str:
    """Everything that the storage root has of a job."""
    files = [path for path in root.local_path(f"jobs/{job_id}").rglob("*") if path.is_file()]
    return "".join(path.read_bytes().decode(errors="replace") for path in files)


def test_variables_and_secrets_reach_a_command_without_the_sdk_and_no_worker_has_their_key(
    workbench: Workbench, write_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(workbench.env, "MY_SECRET", SECRET)
    monkeypatch.setitem(workbench.env, "HF_TOKEN", TOKEN)
    template, workspace = write_job(SCRIPT, command="cd /workspace/app && env && python main.py")
    # It asks for no checkpoints, and need not report steps either.
    template.write_text(template.read_text().split("checkpoint:")[0])
    outcome, job = workbench.submit(template, workspace, "--env", "PLAIN=value", "--secret", "MY_SECRET")

    assert outcome.exit_code == 0, outcome
    assert f"plain value secret *** {len(SECRET)}" in outcome.stdout
    assert "MY_SECRET=***" in outcome.stdout
    assert "HF_TOKEN=***" in outcome.stdout
    assert "workers above: 1" in outcome.stdout
    assert "ray::JobSupervisor" in outcome.stdout
    stored = read_stored(workbench.root, job.record.job_id)
    assert SECRET not in outcome.stdout + outcome.stderr + stored
    assert TOKEN not in outcome.stdout + outcome.stderr + stored
    assert KEY_VARIABLE not in outcome.stdout + outcome.stderr + stored
    assert not opens(workbench.root, job.record.job_id, outcome.stdout + outcome.stderr + stored)
    # Ray's own logs and records neither.
    files = [path for base in (workbench.ray_dir, workbench.cluster_dir) for path in base.rglob("*") if path.is_file()]
    assert [path for path in files if KEY_VARIABLE.encode() in path.read_bytes()] == []


def test_on_another_cluster_no_process_and_none_of_rays_files_has_it_either(
    workbench: Workbench, write_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    workbench.start_cluster()
    monkeypatch.setenv("PERIFLOW_LOCAL_CLUSTER_DIR", str(workbench.cluster_dir))
    cluster = find_local_cluster()
    assert cluster is not None
    _, workspace = write_job(SCRIPT)
    custom = {
        "type": "custom",
        "docker": {"command": "cd /workspace/app && env && python main.py"},
        "workspace": {"mount_path": "/workspace"},
    }
    template = {"vm": "local", "num_devices": 1, "job_setting": custom}
    record = submit_job(
        workbench.root,
        build_plan(
            JobSpec.model_validate(template),
            local_vm(),
            storage_uri=workbench.root.uri,
            workspace_dir_name=workspace.name,
            secret_names=("MY_SECRET",),
        ),
        cluster,
        workspace=scan_workspace(workspace),
        secrets={"MY_SECRET": SECRET},
        created_by="ada",
        python=sys.executable,
        # As on a cluster that this machine shares no files with.
        cloud_environment_dir=None,
    )
    outcome, job = workbench.follow(record.job_id)

    assert (outcome.exit_code, job.state.status) == (0, "success"), outcome
    assert "MY_SECRET=***" in outcome.stdout
    assert "workers above: 1" in outcome.stdout
    assert KEY_VARIABLE not in outcome.stdout
    assert not opens(workbench.root, record.job_id, outcome.stdout + read_stored(workbench.root, record.job_id))
    assert "secrets-asked.json" not in workbench.root.list_names(f"jobs/{record.job_id}")
    answers = json.dumps([cluster._request("GET", "/api/jobs/"), cluster.read_driver_output(record.ray_submission_id)])
    assert record.ray_submission_id in answers
    assert not opens(workbench.root, record.job_id, answers)
    files = [path for base in (workbench.ray_dir, workbench.cluster_dir) for path in base.rglob("*") if path.is_file()]
    assert [path for path in files if KEY_VARIABLE.encode() in path.read_bytes()] == []
