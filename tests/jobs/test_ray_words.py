"""A loop that was written for Ray Train: its own words are the job's metrics, checkpoints, notices and output.

The two examples of Ray's own wheel run as they are, but for the import of the trainer.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray.train.examples.pytorch
from support.function_chain_job import TIMEOUT_S, FunctionJob, make_job
from support.workbench import Workbench, wait_until

from periflow_ray import jobs
from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.jobs.logs import read_logs
from periflow_ray.jobs.metrics import read_metrics
from periflow_ray.runtime.member.sandbox import Sandbox
from periflow_ray.store import checkpoints

pytestmark = pytest.mark.ray

# Attempts end at a killed rank and at a notice; the third one comes to its end.
SCRIPT = """
import json, os, subprocess, sys, tempfile, time
from pathlib import Path
import ray.train, ray.train.collective
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from periflow_ray import TorchTrainer

def train(config):
    from beside.names import NAME
    context = ray.train.get_context()
    rank, epoch, noticed = context.get_world_rank(), 0, False
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            shards = [json.loads(Path(directory, f"shard-{i}").read_text()) for i in range(context.get_world_size())]
            assert shards[0] == shards[1] and sorted(os.listdir(directory)) == ["shard-0", "shard-1"]
            epoch, noticed = shards[rank]
    print("begins", json.dumps([rank, epoch, noticed, context.get_experiment_name(), NAME]))
    if checkpoint is None:
        os.write(1, f"of a library on {rank}\\n".encode())
        subprocess.run(["echo", f"of a command on {rank}"])
        for done in range(3):
            print(f"\\r{done + 1}/3 on {rank}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    assert ray.train.collective.broadcast_from_rank_zero(rank) == 0

    def report(saves, **metrics):
        metrics = {"epoch": epoch, "loss": 1 / epoch, "eval": {"rank": rank}, **metrics}
        if not saves:
            return ray.train.report(metrics)
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, f"shard-{rank}").write_text(json.dumps([epoch, noticed]))
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(directory))

    while epoch < 6 or not noticed:
        epoch += 1
        info = ray.train.get_preemption_info()
        if info is not None:
            assert info.preempted_ranks == [0, 1] and info.deadline_ms > time.time() * 1000
            noticed = True
            print("goes away", epoch)
            report(True)
        report(epoch in (2, 4))
        if epoch == 5 and checkpoint is None and rank == 1:
            os._exit(3)
        time.sleep(0.05)
    epoch += 1
    report(True, note="the end")
    return rank

if __name__ == "__main__":
    run_config = RunConfig(
        name="words",
        failure_config=FailureConfig(max_failures=1),
        checkpoint_config=CheckpointConfig(
            num_to_keep=2, checkpoint_score_attribute="loss", checkpoint_score_order="max"
        ),
    )
    result = TorchTrainer(train, scaling_config=ScalingConfig(num_workers=2), run_config=run_config).fit()
    with result.checkpoint.as_directory() as directory:
        files = sorted(os.listdir(directory))
    best = [metrics["epoch"] for _, metrics in result.best_checkpoints]
    frame = list(result.metrics_dataframe["epoch"])
    print("RESULT", json.dumps([result.metrics, files, best, frame, result.return_value]))
"""


@pytest.fixture
def job(tmp_path: Path, workbench: Workbench) -> Iterator[FunctionJob]:
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "names.py").write_text("NAME = 'beside'\n")
    # The cluster asks for its token, of which the script knows the file and no more.
    ray_env = {name: value for name, value in workbench.ray_env().items() if name != "RAY_AUTH_MODE"}
    made = make_job(tmp_path, ray_env, SCRIPT)
    yield made
    made.end()


def test_reports_are_metrics_and_checkpoints_that_a_killed_rank_and_a_notice_leave_whole(job: FunctionJob) -> None:
    job.start()
    root = job.bench.root
    wait_until(
        lambda: len(read_attempts(root, 1)) == 2 and jobs.read_progress(root, 1).step > 8, "attempt 2 trains", TIMEOUT_S
    )
    drill = job.run("job", "drill", 1, "--notice", "30s")
    assert drill.exit_code == 0, drill
    killed, noticed, last = job.finish()

    assert (killed.cause, killed.resumable_step, noticed.resumed_step) == ("lost", 4, 4)
    assert (noticed.cause, noticed.resumable_step) == ("preemption", noticed.last_step)
    assert noticed.save is not None
    assert (last.resumed_step, last.cause) == (noticed.save.step, None)
    lines = [line.text for line in read_logs(root, 1)]
    begun = sorted(json.loads(line[7:]) for line in lines if line.startswith("begins "))
    step = noticed.save.step
    assert begun == sorted(
        [rank, epoch, was_noticed, "words", "beside"]
        for rank in range(2)
        for epoch, was_noticed in [(0, False), (4, False), (step, True)]
    )
    for rank in range(2):
        assert {f"of a library on {rank}", f"of a command on {rank}", f"3/3 on {rank}"} <= set(lines)
    # Every report is a step, and none is missing or there twice.
    metrics = read_metrics(root, 1, rank=0)
    assert [metric.step for metric in metrics] == list(range(1, step + 2))
    assert metrics[0].values == {"epoch": 1, "loss": 1.0, "eval/rank": 0}
    # The two best ones, and the newest.
    assert [one.step for one in checkpoints.list_committed(root, 1)] == [2, 4, step + 1]
    result = next(json.loads(line[7:]) for line in job.output.splitlines() if line.startswith("RESULT "))
    end = {"epoch": step + 1, "loss": 1 / (step + 1), "eval": {"rank": 0}, "note": "the end"}
    assert result == [end, ["shard-0", "shard-1"], [step + 1, 4, 2], [step + 1, 4, 2], 0]
    assert not Sandbox(root.uri, 1, 0).job_dir.exists()


@pytest.mark.long
def test_rays_own_examples_run_as_they_are_and_a_notice_restarts_them(tmp_path: Path, workbench: Workbench) -> None:
    """The linear model saves each epoch; it never asks whether a machine goes."""
    copy_example("torch_linear_example", tmp_path / "main.py")
    bench = Workbench(tmp_path / "storage", tmp_path / "no-cluster")
    bench.env.update(workbench.ray_env())
    command = [sys.executable, "main.py", "--num-workers", "2", "--epochs", "30"]
    with subprocess.Popen(command, cwd=tmp_path, env=bench.env, stdout=subprocess.PIPE, text=True) as script:
        wait_until(lambda: checkpoints.latest_committed(bench.root, 1) is not None, "a checkpoint", TIMEOUT_S)
        drill = bench.run("job", "drill", 1, "--notice", "30s")
        assert drill.exit_code == 0, drill
        output = script.communicate(timeout=TIMEOUT_S)[0]
    assert script.returncode == 0, output
    noticed, last = read_attempts(bench.root, 1)
    assert noticed.save is not None
    assert (noticed.cause, last.cause, last.resumed_step) == ("preemption", None, noticed.save.step)
    # It begins anew, because it asks for no checkpoint, and counts on.
    assert last.last_step == noticed.save.step + 30
    result = json.loads(output.splitlines()[-1].replace("'", '"'))
    metrics = read_metrics(bench.root, 1)
    assert (metrics[-1].step, metrics[-1].values) == (last.last_step, result)


@pytest.mark.long
def test_rays_own_example_of_fashion_mnist_reports_its_metrics(tmp_path: Path) -> None:
    copy_example("torch_fashion_mnist_example", tmp_path / "example.py")
    (tmp_path / "main.py").write_text("import example\n\nexample.train_fashion_mnist(num_workers=2)\n")
    write_images(tmp_path / "data" / "FashionMNIST" / "raw")
    bench = Workbench(tmp_path / "storage", tmp_path / "no-cluster")
    env = {**bench.env, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "main.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done
    metrics = read_metrics(bench.root, 1)
    assert [metric.step for metric in metrics] == list(range(1, 11))
    assert all(set(metric.values) == {"loss", "accuracy"} for metric in metrics)
    assert f"'loss': {metrics[-1].values['loss']}" in done.stdout
    # Its progress bars.
    assert any(line.text.startswith("Train Epoch 9: 100%") for line in read_logs(bench.root, 1))


def copy_example(name: str, target: Path) -> None:
    """Ray's own example, with nothing changed but the trainer's import."""
    text = Path(ray.train.examples.pytorch.__file__).with_name(f"{name}.py").read_text()
    changed = text.replace("from ray.train.torch import TorchTrainer", "from periflow_ray import TorchTrainer")
    assert changed != text
    target.write_text(changed)


def write_images(directory: Path) -> None:
    """As many images as make one step for each of two ranks, in the format of MNIST."""
    directory.mkdir(parents=True)
    for part in ("train", "t10k"):
        header = struct.pack(">IIII", 0x803, 32, 28, 28)
        (directory / f"{part}-images-idx3-ubyte").write_bytes(header + bytes(range(256)) * (32 * 28 * 28 // 256))
        labels = struct.pack(">II", 0x801, 32) + bytes(number % 10 for number in range(32))
        (directory / f"{part}-labels-idx1-ubyte").write_bytes(labels)
