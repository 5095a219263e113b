"""Whole jobs and what they leave in their storage root: retention, inputs, credentials, damage, function jobs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from support.workbench import Workbench, processes_with, wait_until

from periflow_ray import jobs
from periflow_ray.jobs.events import read_events
from periflow_ray.jobs.logs import read_logs
from periflow_ray.runtime.command_jobs.node import NodeTask
from periflow_ray.store import checkpoints
from periflow_ray.store.checksum import is_checksum_of

pytestmark = pytest.mark.ray


WriteJob = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module", autouse=True)
def _cluster_knows_no_cloud(workbench: Workbench) -> None:
    """The embedded cluster was started by a shell without any of the cloud variables that later jobs come with."""
    workbench.start_cluster()


KEEPING_SCRIPT = """
import os
import periflow_sdk as pf
pf.init(8)
for step in range(1, 9):
    with pf.train_step():
        pf.metric({"loss": 1 / step})
    if step % 2 == 0:
        with open(os.path.join(os.environ["CKPT_DIR"], "state.txt"), "w") as file:
            file.write(f"as of step {step}")
        pf.upload_checkpoint()
"""
# Starts from another job's checkpoint.
STARTING_SCRIPT = """
import os, sys
import periflow_sdk as pf
pf.init(1)
print(os.environ["PROCESSED_ITERS"], os.listdir(os.environ["CKPT_DIR"]), open(sys.argv[1]).read())
"""


def test_a_stored_credential_opens_the_bucket_for_two_jobs_and_shows_up_nowhere_else(
    workbench: Workbench, s3: Workbench, write_job: WriteJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = f"only-in-the-credentials-file-{uuid4().hex}"
    endpoint_url = s3.env["AWS_ENDPOINT_URL"]
    (tmp_path / "keys.env").write_text(f"access_key_id=team\nsecret_access_key={secret}\nendpoint_url={endpoint_url}\n")
    monkeypatch.setenv("PERIFLOW_CREDENTIALS_FILE", str(tmp_path / "credentials.json"))
    monkeypatch.setitem(workbench.env, "PERIFLOW_CREDENTIALS_FILE", str(tmp_path / "credentials.json"))
    created = workbench.run("credential", "create", "team-s3", "--type", "s3", "--from-file", tmp_path / "keys.env")
    assert created.exit_code == 0, created
    bench = s3.on(s3.root.uri, "--storage-credential", "team-s3")
    for name in [name for name in bench.env if name.startswith("AWS_") and not name.endswith("_FILE")]:
        del bench.env[name]

    job_id = bench.start(*write_job(KEEPING_SCRIPT, extra="  keep_last: 2\n"))
    seen: set[int] = set()

    def has_ended() -> bool:
        seen.update(processes_with(secret))
        return jobs.read_state(s3.root, job_id).has_ended

    wait_until(has_ended, "the job ends")
    outcome, earlier = bench.follow(job_id)

    assert (outcome.exit_code, earlier.state.status) == (0, "success"), outcome
    # Only those that were to be kept.
    assert s3.root.list_names(f"jobs/{job_id}/checkpoints") == ["step-00000006", "step-00000008"]
    assert not seen, "command lines and environments"

    started = write_job(
        STARTING_SCRIPT,
        command="cd /workspace/app && python main.py /workspace/init/state.txt",
        extra=f"  input:\n    id: {job_id}/step-00000006\n    mount_path: /workspace/init\n",
    )
    next_outcome, _ = bench.submit(*started)

    assert next_outcome.exit_code == 0, next_outcome
    assert "\n0 [] as of step 6\n" in next_outcome.stdout
    for printed in (outcome, next_outcome):
        assert secret not in printed.stdout + printed.stderr
    assert [key for key in s3.root.list_files("") if secret.encode() in s3.root.read_bytes(key)] == []
    ray_files = [path for path in bench.ray_dir.rglob("*") if path.is_file()]
    assert any(path.name.startswith("job-driver-periflow") for path in ray_files)
    cluster_files = [path for path in bench.cluster_dir.rglob("*") if path.is_file()]
    assert [path for path in ray_files + cluster_files if secret.encode() in path.read_bytes()] == []


def test_the_text_of_what_nodes_are_given_shows_no_secret(workbench: Workbench) -> None:
    # Ray keeps this text for its dashboard where RAY_TRAIN_ENABLE_STATE_TRACKING is set.
    task = NodeTask("{}", 1, "claim", workbench.root, None, {"TOKEN": "hidden"}, {"AWS_SECRET_ACCESS_KEY": "hidden"})

    assert repr(task) == f"NodeTask(plan_json='{{}}', job_id=1, claim='claim', root={workbench.root!r}, monitor=None)"


@pytest.mark.long
def test_a_corrupt_newest_checkpoint_is_skipped_for_the_one_before(workbench: Workbench, write_job: WriteJob) -> None:
    script = """
import os, signal
import periflow_sdk as pf
start, state_path = int(os.environ["PROCESSED_ITERS"]), os.path.join(os.environ["CKPT_DIR"], "state.txt")
if start > 0:
    print("starts with", open(state_path).read(), flush=True)
pf.init(6)
for step in range(start + 1, 7):
    with pf.train_step():
        pass
    if step % 2 == 0:
        with open(state_path, "w") as file:
            file.write(f"as of step {step}")
        pf.upload_checkpoint()
    if step == 4 and start == 0:
        signal.pause()
"""
    job_id = workbench.start(*write_job(script, extra="max_failures: 1\n"))

    def list_steps() -> list[int]:
        return [manifest.step for manifest in checkpoints.list_committed(workbench.root, job_id)]

    wait_until(lambda: list_steps() == [2, 4], "two checkpoints are committed")
    stored = workbench.root.local_path(f"jobs/{job_id}/checkpoints/step-00000004/files/state.txt")
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    assert workbench.kill_ranks(job_id) == 1
    outcome, _ = workbench.follow(job_id)

    assert outcome.exit_code == 0, outcome
    assert "\nstarts with as of step 2\n" in outcome.stdout
    notices = [event.text for event in read_events(workbench.root, job_id) if event.kind == "note"]
    [reason] = [notice for notice in notices if "is not used" in notice]
    assert reason.startswith("checkpoint step-00000004 is not used: ")
    assert "'files/state.txt' has checksum" in reason
    assert "resumes from checkpoint step-00000002 at step 2" in notices
    assert list_steps() == [2, 4, 4, 6]
    verified = workbench.run("checkpoint", "verify", f"{job_id}/step-00000004", "-o", "json")
    assert verified.exit_code == 1
    assert [problem["file"] for problem in json.loads(verified.stdout)["problems"]] == ["files/state.txt"]


FUNCTION_SCRIPT = """
import os, sys, time
import periflow_ray as pf

def train(config):
    import torch
    from periflow_ray.store import checkpoints
    from periflow_ray.store.root import StorageRoot
    found = pf.latest_checkpoint_dir()
    print("found", None if found is None else torch.load(found / "model.pt"))
    start, save = int(os.environ["PROCESSED_ITERS"]), os.environ["CKPT_DIR"]
    pf.init(total_train_steps=4)
    for step in range(start + 1, 5):
        with pf.train_step():
            pf.metric({"loss": 1 / step})
        if step % 2 == 0:
            os.makedirs(os.path.join(save, "optimizer"), exist_ok=True)
            torch.save({"step": step}, os.path.join(save, "model.pt"))
            torch.save(torch.full((3,), step), os.path.join(save, "optimizer", "moments.pt"))
            pf.upload_checkpoint()
        if step == 3 and start == 0:
            while not checkpoints.list_committed(StorageRoot(config["storage"]), 1):
                time.sleep(0.1)
            raise ValueError("boom at step 3")

if __name__ == "__main__":
    result = pf.TorchTrainer(train, {"storage": sys.argv[1]}, storage=sys.argv[1], max_failures=1).fit()
    result.checkpoint.to_directory(sys.argv[2])
"""


def test_a_function_job_in_a_bucket_gives_rays_result_with_the_committed_checkpoint(
    workbench: Workbench, s3: Workbench, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(FUNCTION_SCRIPT)
    done = subprocess.run(
        [sys.executable, "train.py", s3.root.uri, "result"],
        cwd=tmp_path,
        env={**s3.env, **workbench.ray_env()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
    )

    assert done.returncode == 0, (done.stdout, done.stderr)
    [job] = jobs.list_jobs(s3.root)
    job_id = job.record.job_id
    assert (job.state.status, job.state.attempt) == ("success", 2)
    found = [line.text for line in read_logs(s3.root, job_id) if line.text.startswith("found")]
    assert found == ["found None", "found {'step': 2}"]
    latest = checkpoints.list_committed(s3.root, job_id)[-1]
    assert (latest.step, [file.path for file in latest.files]) == (4, ["model.pt", "optimizer/moments.pt"])
    result_dir = tmp_path / "result"
    in_result = {str(path.relative_to(result_dir)): path for path in result_dir.rglob("*") if path.is_file()}
    assert sorted(in_result) == [file.path for file in latest.files]
    assert all(is_checksum_of(in_result[file.path], file.checksum) for file in latest.files)
