"""Function jobs that lose a rank or a machine, hang, fail or are stopped end exactly as an undisturbed one does."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support.function_chain_job import (
    NUM_STEPS,
    SAVE_EVERY,
    TIMEOUT_S,
    FunctionJob,
    expected_chain,
    expected_states,
    make_job,
)
from support.workbench import Workbench, wait_until

from periflow_ray import jobs
from periflow_ray.errors import NotFoundError, UsageError
from periflow_ray.jobs import JobState
from periflow_ray.jobs.logs import read_logs
from periflow_ray.torch_trainer import TorchTrainer

pytestmark = pytest.mark.ray


@pytest.fixture
def ray_env(workbench: Workbench) -> Mapping[str, str]:
    return workbench.ray_env()


@pytest.fixture
def job(tmp_path: Path, ray_env: Mapping[str, str]) -> Iterator[FunctionJob]:
    made = make_job(tmp_path, ray_env)
    yield made
    made.end()


@pytest.fixture
def lone_job(tmp_path: Path) -> Iterator[FunctionJob]:
    """One that starts Ray itself: a terminal's Ctrl-C is Ray's processes', too."""
    made = make_job(tmp_path, {})
    yield made
    made.end()


def test_a_job_goes_through_a_notice_a_killed_rank_a_hang_and_stops_without_a_wrong_step(job: FunctionJob) -> None:
    job.start(max_failures=2, hang_timeout_s=10)
    job.wait_for_checkpoint()
    for options in (["--notice", "30s"], ["--kill-rank", 1]):
        drill = job.run("job", "drill", 1, *options)
        assert drill.exit_code == 0, drill
        job.wait_for_checkpoint()
    job.hang()
    # Only the next attempt makes another one.
    job.wait_for_checkpoint()
    stop = job.run("job", "stop", 1)
    assert stop.exit_code == 0, stop
    noticed, killed, hung, stopped = job.finish("stopped")

    assert (noticed.cause, killed.cause, hung.cause, stopped.cause) == ("preemption", "lost", "hang", "stop")
    assert noticed.save is not None
    # Saved where both ranks stopped: nothing is made twice.
    assert noticed.last_step == noticed.save.step == noticed.resumable_step == killed.resumed_step
    # The other rank lost its connection then, and is not taken for the cause.
    assert killed.text == "rank 1 was lost: its process or its machine died"
    assert hung.resumed_step == killed.resumable_step > killed.resumed_step
    assert hung.text.endswith(f"s after step {hung.last_step}")
    assert stopped.resumed_step == hung.resumable_step > hung.resumed_step
    lines = [line.text for line in read_logs(job.bench.root, 1)]
    for rank in range(2):
        assert any(line.startswith(f"[rank {rank}] ") and "train (train.py:" in line for line in lines), lines
    step = stopped.resumable_step
    assert stopped.last_step == step
    assert stop.stderr == (
        f"Job (1) ended: stopped; saved at step {step}.\nGo on with it: TorchTrainer(..., resume=1)\n"
    )
    outcome = job.wait()
    assert outcome.exit_code == 1
    assert f"JobStoppedError: Job (1) is stopped; its newest checkpoint is of step {step}." in outcome.stdout
    refused = job.run("job", "resume", 1)
    assert (refused.exit_code, refused.stderr) == (
        2,
        "Error: job 1 was started from Python, not from a template: run its script again. "
        "To go on from its newest checkpoint: TorchTrainer(..., resume=1)\n",
    )

    # The second Ctrl-C does not wait for a save that will never come.
    job.start(resume=1)
    job.wait_for_checkpoint()
    job.hang()
    job.press_ctrl_c()
    job.wait_for_output("Once more ends it at once.")
    job.press_ctrl_c()
    assert job.wait().exit_code == 77
    ended = job.finish("stopped")[-1]
    assert (ended.cause, ended.resumed_step, ended.resumable_step) == ("stop", step, job.checkpoint_step())

    job.hurry()
    job.start(resume=1)
    last = job.finish()[-1]
    assert (last.cause, last.resumed_step) == (None, ended.resumable_step)
    assert (last.last_step, last.ended_unix_s is not None) == (NUM_STEPS, True)
    assert job.final_states() == expected_states(noticed.resumable_step, step)


@pytest.mark.long
def test_a_job_is_stopped_at_once_without_a_save(job: FunctionJob) -> None:
    job.start()
    job.wait_for_checkpoint()
    stop = job.run("job", "stop", 1, "--now")
    assert stop.exit_code == 0, stop
    (stopped,) = job.finish("stopped")
    assert (stopped.cause, stopped.save, stopped.resumable_step % SAVE_EVERY) == ("stop", None, 0)


@pytest.mark.parametrize("how", ["Ctrl-C", pytest.param("SIGTERM", marks=pytest.mark.long)])
def test_a_signal_saves_and_stops_and_then_does_what_it_always_did(
    lone_job: FunctionJob, tmp_path: Path, how: str
) -> None:
    lone_job.start()
    lone_job.wait_for_checkpoint()
    if how == "Ctrl-C":
        lone_job.press_ctrl_c()
    else:
        lone_job.send(signal.SIGTERM)
    outcome = lone_job.wait()
    (stopped,) = lone_job.finish("stopped")
    step = stopped.resumable_step
    assert (stopped.cause, stopped.last_step) == ("stop", step)
    assert f"Job (1) is stopped; its newest checkpoint is of step {step}." in outcome.stdout
    # Ray has set a handler of SIGTERM that leaves with the signal's number.
    assert outcome.exit_code == (77 if how == "Ctrl-C" else signal.SIGTERM), outcome
    assert outcome.stdout.endswith("interrupted\n") == (how == "Ctrl-C")
    assert lone_job.saved_states(tmp_path / "saved") == [(step, expected_chain(rank, step)) for rank in range(2)]


def test_ctrl_c_while_the_job_waits_for_machines_ends_it(job: FunctionJob) -> None:
    job.start(resources_per_device={"CPU": 1, "no-such-thing": 1})
    job.wait_for_machines()
    job.press_ctrl_c()
    assert job.finish("stopped") == []
    assert job.wait().exit_code == 77


@pytest.mark.long
def test_what_was_saved_before_the_function_raises_is_not_lost(job: FunctionJob) -> None:
    job.raise_after_save()
    job.hurry()
    job.start(max_failures=1)
    first, second = job.finish()
    assert (first.cause, first.resumable_step, second.resumed_step) == ("failure", SAVE_EVERY, SAVE_EVERY)
    assert "rank 1: the function raised ValueError: boom right after the save" in first.text
    assert job.final_states() == expected_states()


LIGHTNING_SCRIPT = """
import json, sys
import periflow_ray as pf

def train(config):
    import hashlib, json, time
    import pytorch_lightning as pl
    import ray.train, torch
    from periflow_ray.lightning import prepare_trainer
    from periflow_ray.resumable import ResumableDataLoader

    rank = ray.train.get_context().get_world_rank()
    seen = []

    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch, batch_idx):
            seen.append([self.current_epoch, batch_idx])
            time.sleep(config["step_time_s"])
            return self.layer(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    pl.seed_everything(0)
    data = torch.randn(800, 4, generator=torch.Generator().manual_seed(1))
    trainer = prepare_trainer(pl.Trainer(max_epochs=3, logger=False, enable_progress_bar=False))
    model = Model()
    trainer.fit(model, ResumableDataLoader(data, 4, seed=1, rank=rank, world_size=2))
    weights = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    print("final", json.dumps([rank, trainer.global_step, hashlib.sha256(weights).hexdigest(), seen[0]]))

if __name__ == "__main__":
    config, options = map(json.loads, sys.argv[1:])
    pf.TorchTrainer(train, config, num_devices=2, **options).fit()
"""


@pytest.mark.long
def test_lightning_saves_in_the_middle_of_an_epoch_and_goes_on_there(
    tmp_path: Path, ray_env: Mapping[str, str]
) -> None:
    calm = make_job(tmp_path / "calm", ray_env, LIGHTNING_SCRIPT)
    calm.start(step_time_s=0)
    calm.finish()
    states = calm.final_states()
    assert [state[1] for state in states] == [300, 300]
    job = make_job(tmp_path / "drilled", ray_env, LIGHTNING_SCRIPT)
    try:
        job.start(step_time_s=0.05)
        job.wait_for_checkpoint()
        wait_until(lambda: jobs.read_progress(job.bench.root, 1).step >= 110, "the second epoch", TIMEOUT_S)
        drill = job.run("job", "drill", 1, "--notice", "30s")
        assert drill.exit_code == 0, drill
        first, second = job.finish()
    finally:
        job.end()
    step = second.resumed_step
    assert (first.cause, first.last_step) == ("preemption", step)
    assert step % 100 != 0
    assert job.final_states() == [[*state[:3], [step // 100, step % 100]] for state in states]


def test_only_an_ended_function_job_without_success_can_be_resumed(tmp_path: Path) -> None:
    bench = Workbench(tmp_path / "storage", tmp_path / "no-cluster")
    for job_id, submission_id, status in [(1, None, "success"), (2, "periflow-x", "stopped")]:
        record = jobs.JobRecord(job_id, None, None, "-", "CPU", 1, 1, None, "kim", 1.0, None, submission_id)
        jobs.write_record(bench.root, record)
        jobs.write_state(bench.root, job_id, JobState(status))

    def resume(job_id: int) -> None:
        TorchTrainer(print, storage=bench.root.uri, resume=job_id).fit()

    with pytest.raises(UsageError, match="job 1 has succeeded; there is nothing left to resume"):
        resume(1)
    with pytest.raises(UsageError, match="Go on with it: periflow-ray job resume 2"):
        resume(2)
    with pytest.raises(NotFoundError, match="job 3 does not exist"):
        resume(3)
