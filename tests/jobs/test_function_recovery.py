"""Function jobs that lose a rank or a machine, hang, fail or are stopped end exactly as an undisturbed one does."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support.function_chain_job import NUM_STEPS, TIMEOUT_S, FunctionJob, after_emergency_save, make_job
from support.hash_chain import HashChain
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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, workbench: Workbench) -> list[list[object]]:
    """What both ranks print at the end of a job that nothing happens to."""
    made = make_job(tmp_path_factory.mktemp("undisturbed"), workbench.ray_env())
    made.start(step_time_s=0)
    (attempt,) = made.finish()
    assert (attempt.cause, attempt.last_step, attempt.ended_unix_s is not None) == (None, NUM_STEPS, True)
    states = made.final_states()
    assert [state[:2] for state in states] == [[rank, HashChain(NUM_STEPS).final_state(rank)] for rank in range(2)]
    return states


def test_a_notice_costs_no_step(job: FunctionJob, undisturbed: list[list[object]]) -> None:
    job.start()
    job.wait_for_checkpoint()
    drill = job.run("job", "drill", 1, "--notice", "30s")
    assert drill.exit_code == 0, drill
    first, second = job.finish()
    assert (first.cause, second.cause) == ("preemption", None)
    assert first.save is not None
    # Saved where both ranks stopped: nothing is made twice.
    assert first.last_step == first.save.step == first.resumable_step == second.resumed_step
    assert job.final_states() == after_emergency_save(undisturbed, second.resumed_step)


def test_a_killed_rank_costs_only_the_steps_after_the_last_checkpoint(
    job: FunctionJob, undisturbed: list[list[object]]
) -> None:
    job.start(max_failures=1)
    job.wait_for_checkpoint()
    drill = job.run("job", "drill", 1, "--kill-rank", 1)
    assert drill.exit_code == 0, drill
    first, second = job.finish()
    # The other rank lost its connection then, and is not taken for the cause.
    assert (first.cause, first.text) == ("lost", "rank 1 was lost: its process or its machine died")
    assert second.resumed_step == first.resumable_step >= 50
    assert job.final_states() == undisturbed


def test_a_stopped_job_is_saved_where_it_stood_and_goes_on_from_there(
    job: FunctionJob, undisturbed: list[list[object]]
) -> None:
    job.start()
    job.wait_for_checkpoint()
    stop = job.run("job", "stop", 1)
    assert stop.exit_code == 0, stop
    (stopped,) = job.finish("stopped")
    step = stopped.resumable_step
    assert (stopped.cause, stopped.last_step) == ("stop", step)
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
    job.start(resume=1)
    assert job.finish()[-1].resumed_step == step
    assert job.final_states() == after_emergency_save(undisturbed, step)


@pytest.mark.long
def test_a_job_is_stopped_at_once_without_a_save(job: FunctionJob) -> None:
    job.start(num_steps=100_000)
    job.wait_for_checkpoint()
    stop = job.run("job", "stop", 1, "--now")
    assert stop.exit_code == 0, stop
    (stopped,) = job.finish("stopped")
    assert (stopped.cause, stopped.save, stopped.resumable_step % 50) == ("stop", None, 0)


@pytest.mark.parametrize("how", ["Ctrl-C", pytest.param("SIGTERM", marks=pytest.mark.long)])
def test_a_signal_saves_and_stops_and_then_does_what_it_always_did(
    lone_job: FunctionJob, undisturbed: list[list[object]], how: str
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
    if how == "Ctrl-C":
        lone_job.start(resume=1)
        lone_job.finish()
        assert lone_job.final_states() == after_emergency_save(undisturbed, step)


def test_a_second_ctrl_c_does_not_wait_for_the_save(job: FunctionJob) -> None:
    job.start(harm="hang")
    job.wait_for_checkpoint()
    wait_until(lambda: jobs.read_progress(job.bench.root, 1).step >= 60, "it stands still", TIMEOUT_S)
    job.press_ctrl_c()
    wait_until(lambda: "Once more ends it at once." in job.output, "the first is taken", TIMEOUT_S)
    job.press_ctrl_c()
    assert job.wait().exit_code == 77
    (stopped,) = job.finish("stopped")
    assert (stopped.cause, stopped.resumable_step) == ("stop", 50)


def test_ctrl_c_while_the_job_waits_for_machines_ends_it(job: FunctionJob) -> None:
    job.start(resources_per_device={"CPU": 1, "no-such-thing": 1})
    job.wait_for_machines()
    job.press_ctrl_c()
    assert job.finish("stopped") == []
    assert job.wait().exit_code == 77


def test_a_hang_shows_every_ranks_stack_and_the_job_goes_on(job: FunctionJob, undisturbed: list[list[object]]) -> None:
    job.start(harm="hang", hang_timeout_s=10, max_failures=1)
    first, second = job.finish()
    # Rank 0 has begun the next step, and waits in it for the other's gradients.
    assert (first.cause, first.last_step, second.resumed_step) == ("hang", 61, 50)
    assert first.text.endswith("s after step 61")
    lines = [line.text for line in read_logs(job.bench.root, 1)]
    for rank in range(2):
        assert any(line.startswith(f"[rank {rank}] ") and "train (train.py:" in line for line in lines), lines
    assert job.final_states() == undisturbed


@pytest.mark.long
def test_what_was_saved_before_the_function_raises_is_not_lost(
    job: FunctionJob, undisturbed: list[list[object]]
) -> None:
    job.start(harm="raise", max_failures=1)
    first, second = job.finish()
    assert (first.cause, first.resumable_step, second.resumed_step) == ("failure", 50, 50)
    assert "rank 1: the function raised ValueError: boom right after the save" in first.text
    assert job.final_states() == undisturbed


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
