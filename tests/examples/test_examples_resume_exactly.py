"""An example that is killed in the middle and started again ends with the very weights of an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY_DIR = Path(__file__).resolve().parents[2]
EXAMPLES_DIR = REPOSITORY_DIR / "examples"


@pytest.fixture
def run_example(tmp_path):
    """Run a command in a fresh folder; with ``kill_after``, kill it and its children at the first line with that."""
    processes = []

    def run(command: list[str], kill_after: str | None = None) -> str:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        output = ""
        for line in process.stdout:
            output += line
            if kill_after is not None and kill_after in line:
                os.killpg(process.pid, signal.SIGKILL)
                break
        exit_code = process.wait()
        process.stdout.close()
        assert exit_code == (0 if kill_after is None else -signal.SIGKILL), output
        return output

    yield run
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_cifar_on_two_ranks_resumes_in_the_middle_of_an_epoch(tmp_path, run_example):
    run_example([str(EXAMPLES_DIR / "cifar" / "prepare_data.py"), "--output", str(tmp_path / "data")])

    def command(checkpoint_dir: Path) -> list[str]:
        # 23 steps are an epoch, so that the newest checkpoint before the kill lies in the second one.
        return (
            f"-m torch.distributed.run --standalone --nproc_per_node 2 {EXAMPLES_DIR}/cifar/main.py --total-steps 60 "
            f"--batch-size 64 --num-dataloader-workers 1 --log-interval 1 --save-interval 25 --test-interval 25 "
            f"--data-path {tmp_path}/data --save {checkpoint_dir} --load {checkpoint_dir}"
        ).split()

    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    run_example(command(undisturbed))
    run_example(command(disturbed), kill_after="step 27/60")
    assert "steps 26 to 60" in run_example(command(disturbed))

    expected = torch.load(undisturbed / "checkpoint.pt", weights_only=True)
    actual = torch.load(disturbed / "checkpoint.pt", weights_only=True)
    assert actual["latest_step"] == expected["latest_step"] == 60
    assert_same_tensors(actual["model"], expected["model"])
    assert_same_tensors(actual["optimizer"]["state"], expected["optimizer"]["state"])
    assert actual["loader"] == expected["loader"]
    assert (actual["loader"]["epoch"], actual["loader"]["num_batches_taken"]) == (2, 14)
    assert "nothing left to train" in run_example(command(disturbed))


def test_dkt_resumes_in_the_middle_of_an_epoch_with_dropout_and_accumulation(tmp_path, run_example):
    def command(checkpoint_dir: Path) -> list[str]:
        # 8 steps are an epoch; those checkpoints lie in the middle of one.
        return (
            f"{EXAMPLES_DIR}/dkt/main.py --num-students 640 --num-epochs 4 --save-interval 5 "
            f"--checkpoint-dir {checkpoint_dir}"
        ).split()

    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    run_example(command(undisturbed))
    run_example(command(disturbed), kill_after="epoch 2:")
    run_example(command(disturbed))

    [expected] = [torch.load(path, weights_only=True) for path in undisturbed.glob("*.ckpt")]
    [actual] = [torch.load(path, weights_only=True) for path in disturbed.glob(f"*step={expected['global_step']}.ckpt")]
    assert_same_tensors(actual["state_dict"], expected["state_dict"])
    assert_same_tensors(actual["optimizer_states"][0]["state"], expected["optimizer_states"][0]["state"])


def assert_same_tensors(actual, expected):
    """Bit by bit, through nested mappings."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same_tensors(actual[name], value)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(actual[name], value), name
        else:
            assert actual[name] == value, name
