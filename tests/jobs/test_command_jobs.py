"""Whole jobs through the real command line, on a real Ray cluster, with real torchrun children."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.workbench import Workbench, find_agent, processes_with, wait_until

from periflow_ray import jobs
from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.jobs.logs import read_logs
from periflow_ray.jobs.metrics import read_metrics
from periflow_ray.runtime.member.sandbox import Sandbox
from periflow_ray.store import checkpoints

pytestmark = pytest.mark.ray

WriteJob = Callable[..., tuple[Path, Path]]
# What a diagnosis says is held by the tests of runtime.diagnosis; one failing script shows that it gets to the user.
LONG = pytest.mark.long

TORCHRUN = (
    "cd /workspace/app && torchrun --nnodes $NUM_NODES --node_rank $NODE_RANK --master_addr $MASTER_ADDR "
    "--master_port $MASTER_PORT --nproc_per_node $NPROC_PER_NODE main.py --save /workspace/ckpt"
)

DDP_SCRIPT = """
import os, sys, torch, torch.distributed as dist
import periflow_sdk as pf

dist.init_process_group("gloo")
rank = dist.get_rank()
save = sys.argv[sys.argv.index("--save") + 1]
start = int(os.environ["PROCESSED_ITERS"])
pf.init(total_train_steps=12)
for step in range(start + 1, 13):
    with pf.train_step():
        total = torch.tensor([float(rank + 1)])
        dist.all_reduce(total)
        pf.metric({"loss": 1.0 / step, "total": total.item()})
    if step % 6 == 0:
        torch.save({"latest_step": step}, os.path.join(save, "checkpoint.pt"))
        pf.upload_checkpoint()
print(f"rank {rank} is done")
"""


def test_a_torchrun_job_on_two_nodes_leaves_metrics_logs_and_checkpoints(
    workbench: Workbench, write_job: WriteJob
) -> None:
    outcome, job = workbench.submit(*write_job(DDP_SCRIPT, command=TORCHRUN), "--num-devices", 2)

    assert outcome.exit_code == 0, outcome
    assert (job.record.num_nodes, job.record.num_devices, job.state.status) == (2, 2, "success")
    assert (job.progress.step, job.progress.total_train_steps) == (12, 12)
    job_id = job.record.job_id
    for rank in (0, 1):
        rows = [(m.step, m.values["total"]) for m in read_metrics(workbench.root, job_id, rank=rank)]
        assert rows == [(step, 3.0) for step in range(1, 13)]
    for node_rank in (0, 1):
        lines = [line.text for line in read_logs(workbench.root, job_id) if line.node_rank == node_rank]
        assert f"rank {node_rank} is done" in lines
    committed = checkpoints.list_committed(workbench.root, job_id)
    assert [(manifest.step, [file.path for file in manifest.files]) for manifest in committed] == [
        (6, ["checkpoint.pt"]),
        (12, ["checkpoint.pt"]),
    ]
    assert list(workbench.root.local_path(f"jobs/{job_id}/tensorboard").glob("events.out.tfevents.*"))
    view = json.loads(workbench.run("job", "view", job_id, "-o", "json").stdout)
    assert view["status"] == "success"


@pytest.mark.long
def test_launch_mode_device_starts_one_process_per_device_with_ranks_set(
    workbench: Workbench, write_job: WriteJob
) -> None:
    script = """
import os
import periflow_ray as pf
pf.init(1)
with pf.train_step():
    pf.metric({name: int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK")})
"""
    template, workspace = write_job(script)
    template.write_text(template.read_text().replace("  type: custom", "  type: custom\n  launch_mode: device"))
    outcome, job = workbench.submit(template, workspace, "--num-devices", 2, "--devices-per-node", 2)

    assert outcome.exit_code == 0, outcome
    rows = {m.rank: dict(m.values) for m in read_metrics(workbench.root, job.record.job_id, rank=None)}
    assert rows == {
        0: {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "NODE_RANK": 0},
        1: {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "NODE_RANK": 0},
    }


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param("raise ValueError('boom')", ["it ended with exit code 1", "ValueError: boom"], marks=LONG),
        pytest.param("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ["SIGKILL", "memory"], marks=LONG),
        pytest.param("import torch; torch.empty(1 << 50)", ["the machine's memory is full"], marks=LONG),
        pytest.param("import not_installed", ["the python module 'not_installed' is missing"], marks=LONG),
        ("import periflow_sdk; print('done', end='')", ["no process called pf.init()"]),
        pytest.param(
            "import periflow_sdk as pf; pf.start_step()",
            ["Call pf.init(total_train_steps=...) once"],
            marks=LONG,
        ),
    ],
    ids=["raises", "killed", "out-of-memory", "missing-module", "never-inits", "steps-before-init"],
)
def test_a_failing_script_gives_a_short_true_diagnosis(
    workbench: Workbench, write_job: WriteJob, script: str, expected: list[str]
) -> None:
    outcome, job = workbench.submit(*write_job(script))

    assert (outcome.exit_code, job.state.status) == (1, "failed"), outcome
    message = job.state.message or ""
    assert message.startswith("node 0"), message
    for text in expected:
        assert text.lower() in message.lower()
    assert len(message.splitlines()) < 30
    assert "Traceback" not in outcome.stderr.replace(message, "")


@pytest.mark.long
def test_the_first_failing_rank_is_named_rather_than_a_casualty(workbench: Workbench, write_job: WriteJob) -> None:
    script = DDP_SCRIPT.replace(
        "    with pf.train_step():", "    assert (rank, step) != (1, 3), 'rank 1 breaks'\n    with pf.train_step():"
    )
    outcome, job = workbench.submit(*write_job(script, command=TORCHRUN), "--num-devices", 2, "--devices-per-node", 2)

    assert outcome.exit_code == 1
    assert (job.state.message or "").startswith("node 0, rank 1: it ended with exit code 1")
    assert "rank 1 breaks" in (job.state.message or "")


def test_restarts_resume_from_the_committed_checkpoint_and_come_to_the_end_after_the_last_one(
    workbench: Workbench, write_job: WriteJob
) -> None:
    script = """
import os, sys
import helper
import periflow_sdk as pf
start, save = int(os.environ["PROCESSED_ITERS"]), os.environ["CKPT_DIR"]
found = sorted(os.listdir(save))
print("starts at", start, "with", found, flush=True)
pf.init(10)
for step in range(start + 1, 11):
    with pf.train_step():
        pf.metric({"step_seen": step})
    open(os.path.join(save, "state.txt"), "w").write(str(step))
    if step == 4:
        pf.upload_checkpoint()
    if step == 6 and start == 0:
        open(os.path.join(save, "never-uploaded.txt"), "w").close()
        # As what clears out /tmp does.
        os.remove(helper.__file__)
        sys.exit(3)
if start < 10:
    pf.upload_checkpoint()
    sys.exit("no memory is left to evaluate")
pf.metric({"accuracy": 0.9})
"""
    template, workspace = write_job(script, extra="max_failures: 2\n")
    (workspace / "helper.py").touch()
    outcome, job = workbench.submit(template, workspace)

    assert (outcome.exit_code, job.state.status, job.state.attempt) == (0, "success", 3), outcome
    assert outcome.stdout.count("files of the workspace had been deleted on node 0") == 1
    job_id = job.record.job_id
    printed = [line.text for line in read_logs(workbench.root, job_id) if line.text.startswith("starts")]
    assert printed == [
        "starts at 0 with []",
        "starts at 4 with ['state.txt']",
        "starts at 10 with ['state.txt']",
    ]
    assert [m.step for m in checkpoints.list_committed(workbench.root, job_id)] == [4, 10]
    attempts = read_attempts(workbench.root, job_id)
    assert [attempt.cause for attempt in attempts] == ["failure", "failure", None]
    assert [attempt.resumable_step for attempt in attempts[:2]] == [4, 10]
    assert [attempt.resumed_step for attempt in attempts] == [0, 4, 10]
    assert job.progress.metrics["accuracy"] == 0.9


LONG_SCRIPT = """
import subprocess, sys, time
import periflow_sdk as pf
pf.init(1000)
# A grandchild in a session of its own, as torchrun's workers are.
subprocess.Popen(["sleep", "1000"], start_new_session=True)
while True:
    with pf.train_step():
        time.sleep(0.05)
"""


@pytest.mark.parametrize("victim", ["agent", pytest.param("stop", marks=LONG)])
def test_no_process_of_a_job_survives_it(workbench: Workbench, write_job: WriteJob, victim: str) -> None:
    job_id = workbench.start(*write_job(LONG_SCRIPT))
    sandbox = str(Sandbox(workbench.root.uri, job_id, 0).directory)
    wait_until(lambda: jobs.read_progress(workbench.root, job_id).step > 0, "the job trains")
    assert any("sleep" in Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_with(sandbox))

    if victim == "stop":
        stopped = workbench.run("job", "stop", job_id)
        assert stopped.exit_code == 0, stopped
    else:
        os.kill(find_agent(sandbox), signal.SIGKILL)
    wait_until(lambda: not processes_with(sandbox), "every process of the job ends", 60)

    followed = workbench.run("job", "log", job_id, "-f")
    state = jobs.read_state(workbench.root, job_id)
    assert state.status == ("stopped" if victim == "stop" else "failed")
    if victim == "stop":
        assert not Path(sandbox).exists()
    if victim == "agent":
        assert "died" in (state.message or "")
        assert followed.exit_code == 1


@pytest.mark.long
def test_a_storage_root_that_was_made_anew_has_nothing_of_its_former_jobs(
    workbench: Workbench, write_job: WriteJob, tmp_path: Path
) -> None:
    bench = workbench.on(str(tmp_path / "storage"))
    # Killed with its cluster, a job leaves its sandbox.
    left = Sandbox(bench.root.uri, 1, 0)
    left.create("an earlier job 1")
    left.unpack_workspace(bench.root, 1, "/workspace")
    for name in ("app/main.py", "ckpt/state"):
        path = left.path_of("/workspace") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('an old script runs')")
    script = "import os\nimport periflow_ray as pf\npf.init(1)\nprint('new, with', os.listdir(os.environ['CKPT_DIR']))"
    outcome, job = bench.submit(*write_job(script))
    assert (outcome.exit_code, job.record.job_id) == (0, 1), outcome
    assert "new, with []" in outcome.stdout


@pytest.mark.long
def test_a_dataset_is_linked_at_its_mount_path(workbench: Workbench, write_job: WriteJob, tmp_path: Path) -> None:
    source = tmp_path / "numbers"
    source.mkdir()
    (source / "train.txt").write_text("1 2 3")
    uploaded = workbench.run("datastore", "upload", "-n", "numbers", "-p", f"{source}/")
    assert uploaded.exit_code == 0, uploaded
    template, workspace = write_job(
        "import sys, periflow_sdk as pf; pf.init(1); print('read', open(sys.argv[1]).read())",
        command="cd /workspace/app && python main.py /workspace/data/train.txt",
        extra="data:\n  name: numbers\n  mount_path: /workspace/data\n",
    )
    outcome, _ = workbench.submit(template, workspace)

    assert outcome.exit_code == 0, outcome
    assert "read 1 2 3" in outcome.stdout
