"""The examples with a storage root in a bucket: they are killed, and go on from what was committed there."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from support.workbench import Workbench, wait_until

from periflow_ray.jobs.events import read_events
from periflow_ray.jobs.metrics import read_metrics
from periflow_ray.store import checkpoints

pytestmark = pytest.mark.ray

EXAMPLES_DIR = Path(__file__).parents[2] / "examples"
# How the examples' commands differ here from their templates: some more checkpoints.
NUM_CIFAR_STEPS = 100
CIFAR_CHANGES = {"--total-epochs 5": f"--total-steps {NUM_CIFAR_STEPS}", "--save-interval 50": "--save-interval 25"}
LIGHTNING_CHANGES = {"--num-epochs 3": "--num-epochs 2 --save-interval 20"}
# Each example on one of them, and every pair where time does not count.
S3, ABFS = "moto_server", "azurite_server"
# The same sums on any number of cores.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module", autouse=True)
def _cluster_knows_no_cloud(workbench: Workbench) -> None:
    """The embedded cluster was started by a shell without any of the cloud variables that later jobs come with."""
    workbench.start_cluster()


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in datasets of the examples."""
    directory = tmp_path_factory.mktemp("digits")
    for example, write in (("cifar", "write_cifar100"), ("pth-lightning", "write_mnist")):
        runpy.run_path(str(EXAMPLES_DIR / example / "prepare_data.py"))[write](directory)
    return directory


@pytest.fixture(scope="module")
def train_undisturbed(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train an example without a job and without interruption, once; returns the directory with its checkpoint."""

    @cache
    def train(example: str, num_processes: int, arguments: str) -> Path:
        directory = tmp_path_factory.mktemp("undisturbed")
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
        script = [str(EXAMPLES_DIR / example / "main.py"), *arguments.format(data=digits_dir, ckpt=directory).split()]
        subprocess.run(
            [sys.executable, "-m", *torchrun, *script],
            cwd=directory,
            env={**os.environ, **ONE_THREAD},
            stdin=subprocess.DEVNULL,
            check=True,
            timeout=150,
        )
        return directory

    return train


@pytest.mark.parametrize("cloud_server", [S3, pytest.param(ABFS, marks=pytest.mark.long)], indirect=True)
def test_the_cifar_example_goes_on_from_a_bucket_after_its_ranks_were_killed(
    cloud: Workbench, digits_dir: Path, train_undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    # A name of its own, because the cache of this machine has what was fetched from elsewhere under the same one.
    name = f"cifar-{uuid4().hex[:8]}"
    uploaded = cloud.run("datastore", "upload", "-n", name, "-p", digits_dir / "cifar-100-python")
    assert uploaded.exit_code == 0, uploaded
    text = _read_template("cifar", CIFAR_CHANGES) + f"data:\n  name: {name}\n  mount_path: /workspace/data\n"

    job_id = _run_and_kill_once(cloud, "cifar", text, tmp_path)

    notices = [event.text for event in read_events(cloud.root, job_id) if event.kind == "note"]
    assert [notice.split(",")[0] for notice in notices if notice.startswith("fetches")] == [
        f"fetches dataset '{name}': 3 files"
    ]
    committed = checkpoints.list_committed(cloud.root, job_id)
    assert [manifest.step for manifest in committed] == list(range(25, NUM_CIFAR_STEPS + 1, 25))
    downloaded = cloud.run("checkpoint", "download", job_id, "-d", tmp_path / "downloaded")
    assert downloaded.exit_code == 0, downloaded
    arguments = (
        f"--total-steps {NUM_CIFAR_STEPS} --dataset cifar100 --batch-size 64 --test-interval 23 --save-interval 25 "
        "--data-path {data} --save {ckpt} --load {ckpt}"
    )
    expected = torch.load(train_undisturbed("cifar", 2, arguments) / "checkpoint.pt", weights_only=True)
    actual = torch.load(tmp_path / "downloaded" / "checkpoint.pt", weights_only=True)
    assert actual["latest_step"] == expected["latest_step"] == NUM_CIFAR_STEPS
    _assert_same_tensors(actual["model"], expected["model"])


@pytest.mark.parametrize("cloud_server", [pytest.param(S3, marks=pytest.mark.long), ABFS], indirect=True)
def test_the_lightning_example_goes_on_from_a_bucket_after_its_rank_was_killed(
    cloud: Workbench, digits_dir: Path, train_undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    job_id = _run_and_kill_once(cloud, "pth-lightning", _read_template("pth-lightning", LIGHTNING_CHANGES), tmp_path)

    downloaded = cloud.run("checkpoint", "download", job_id, "-d", tmp_path / "downloaded")
    assert downloaded.exit_code == 0, downloaded
    arguments = "--data-path {data} --checkpoint-dir {ckpt} --num-epochs 2 --save-interval 20"
    [expected_path] = train_undisturbed("pth-lightning", 1, arguments).glob("*.ckpt")
    expected = torch.load(expected_path, weights_only=True)
    actual = torch.load(tmp_path / "downloaded" / expected_path.name, weights_only=True)
    assert actual["global_step"] == expected["global_step"]
    _assert_same_tensors(actual["state_dict"], expected["state_dict"])


def _run_and_kill_once(bench: Workbench, example: str, text: str, tmp_path: Path) -> int:
    """Run an example to its success, with its ranks killed after the first commit; returns the job's number."""
    template = tmp_path / "pf-template.yml"
    template.write_text(text)
    variables = [f"{name}={value}" for name, value in ONE_THREAD.items()]
    job_id = bench.start(template, EXAMPLES_DIR / example, "--env", *variables)
    wait_until(lambda: bool(checkpoints.list_committed(bench.root, job_id)), "a checkpoint is committed")
    num_ranks = bench.kill_ranks(job_id)
    outcome, job = bench.follow(job_id)

    events = read_events(bench.root, job_id)
    failures = [event.text for event in events if event.kind == "attempt_failed"]
    # The first failure is the kill; if there is another one, its text says why.
    assert (outcome.exit_code, job.state.status, job.state.attempt) == (0, "success", 2), (failures, outcome)
    assert num_ranks == job.record.num_devices
    committed = checkpoints.list_committed(bench.root, job_id)
    resumed = [manifest for manifest in committed if manifest.attempt == 1][-1]
    assert [event.text for event in events if event.text.startswith("resumes from")] == [
        f"resumes from checkpoint {resumed.checkpoint} at step {resumed.step}"
    ]
    assert ["SIGKILL" in text for text in failures] == [True]
    losses = [m.values["loss"] for m in read_metrics(bench.root, job_id) if "loss" in m.values]
    assert sum(losses[-3:]) < sum(losses[:3])
    # From a new shell: every view knows them, and every byte in the bucket is what was saved.
    listed = json.loads(bench.run("checkpoint", "list", "--job", job_id, "-o", "json").stdout)
    assert [(row["id"], row["status"]) for row in listed] == [
        (m.checkpoint_id, "committed") for m in reversed(committed)
    ]
    verified = bench.run("checkpoint", "verify", job_id, "-o", "json")
    assert (verified.exit_code, json.loads(verified.stdout)["is_intact"]) == (0, True), verified
    return job_id


def _read_template(example: str, changes: dict[str, str]) -> str:
    """The example's template with other arguments in its command, and with a restart allowed."""
    text = (EXAMPLES_DIR / example / "pf-template.yml").read_text()
    for usual, changed in changes.items():
        text, num_changed = re.subn(rf"{usual}\b", changed, text)
        assert num_changed == 1, usual
    return f"{text}\nmax_failures: 1\n"


def _assert_same_tensors(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(actual[name], tensor)] == []
