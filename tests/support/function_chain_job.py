"""A function job whose every step follows from the one before: one that is lost, or made twice, changes the last.

It makes its steps slowly until it is told to hurry, so that it does not end before a test is through with it.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from periflow_ray import jobs
from periflow_ray.jobs.attempts import AttemptRecord, read_attempts
from periflow_ray.jobs.events import read_events
from periflow_ray.jobs.logs import read_logs
from periflow_ray.store import checkpoints
from support.workbench import Outcome, Workbench, wait_until

TIMEOUT_S = 180
NUM_STEPS = 1500
SAVE_EVERY = 50
# What the training does, for the ranks and for whoever holds their result against it.
TRAINING = """
import hashlib, json, torch

def make_model():
    torch.manual_seed(0)
    return torch.nn.Linear(8, 1)

def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

def advance(state, step):
    return hashlib.sha256(f"{state} {step}".encode()).hexdigest()

def loss_of(model, step, rank):
    # Noise is never learned, so that gradients do not vanish.
    data = torch.randn(4, 9, generator=torch.Generator().manual_seed(2 * step + rank))
    return (model(data[:, :8]) - data[:, 8:]).square().mean()

def hash_weights(model):
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()
"""
SCRIPT = """
import json, os, sys, time
from pathlib import Path
import periflow_ray as pf

def train(config):
    import ray.train, ray.train.torch, torch
    from training import advance, hash_weights, loss_of, make_model, make_optimizer

    rank = ray.train.get_context().get_world_rank()
    directory, signs = Path(os.environ["CKPT_DIR"]), Path(config["signs"])
    path = directory / f"rank-{rank}.json"
    model = ray.train.torch.prepare_model(make_model())
    optimizer = make_optimizer(model)
    step, state, emergency_steps = 0, str(rank), []
    if path.exists():
        assert ray.train.get_checkpoint() is not None
        step, state, emergency_steps = json.loads(path.read_text())
        saved = torch.load(directory / "model.pt")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    pf.init(total_train_steps=config["num_steps"])
    while step < config["num_steps"]:
        with pf.train_step():
            state = advance(state, step)
            loss = loss_of(model, step, rank)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(0 if (signs / "hurry").exists() else config["step_time_s"])
        step += 1
        is_emergency = pf.is_emergency_save()
        if is_emergency:
            emergency_steps.append(step)
        if step % config["save_every"] == 0 or is_emergency:
            path.write_text(json.dumps([step, state, emergency_steps]))
            if rank == 0:
                weights = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(weights, directory / "model.pt")
            pf.upload_checkpoint()
        if rank == 1 and (signs / "hang").exists():
            (signs / "hang").unlink()
            stand_still = time.sleep
            stand_still(10_000)
        if rank == 1 and (signs / "raise").exists() and step % config["save_every"] == 0:
            (signs / "raise").unlink()
            raise ValueError("boom right after the save")
    print("final", json.dumps([rank, state, hash_weights(model), emergency_steps]))

if __name__ == "__main__":
    config, options = map(json.loads, sys.argv[1:])
    try:
        pf.TorchTrainer(train, config, num_devices=2, **options).fit()
    except KeyboardInterrupt:
        print("interrupted")
        sys.exit(77)
"""


class FunctionJob:
    """A script that runs job 1, in a session of its own so that a terminal's Ctrl-C can be played."""

    job_id = 1

    def __init__(self, bench: Workbench, script: Path) -> None:
        self.bench = bench
        self._script = script
        self._signs_dir = script.parent / "signs"
        self._signs_dir.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, num_steps: int = NUM_STEPS, step_time_s: float = 0.03, **options: object) -> None:
        """Run the script; ``options`` are the trainer's."""
        config = {
            "num_steps": num_steps,
            "step_time_s": step_time_s,
            "save_every": SAVE_EVERY,
            "signs": str(self._signs_dir),
        }
        with self._script.with_suffix(".out").open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, self._script.name, json.dumps(config), json.dumps(options)],
                cwd=self._script.parent,
                env=self.bench.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A shell lets its background programs ignore it, and an ignored signal is inherited.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def hurry(self) -> None:
        """Have it make the rest of its steps at once."""
        (self._signs_dir / "hurry").touch()

    def raise_after_save(self) -> None:
        """Have rank 1 raise an exception right after its next save."""
        (self._signs_dir / "raise").touch()

    def hang(self) -> None:
        """Have rank 1 stand still; returns when it does."""
        sign = self._signs_dir / "hang"
        sign.touch()
        self._wait_until(lambda: not sign.exists(), "it stands still")

    def press_ctrl_c(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGINT)

    def send(self, signum: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(signum)

    def checkpoint_step(self) -> int:
        """The step of the newest committed checkpoint; 0 without one."""
        newest = checkpoints.latest_committed(self.bench.root, self.job_id)
        return 0 if newest is None else newest.step

    def wait_for_checkpoint(self) -> None:
        """Until one more is committed."""
        step = self.checkpoint_step()
        self._wait_until(lambda: self.checkpoint_step() > step, "a checkpoint")

    def wait_for_machines(self) -> None:
        """Until it waits for them."""
        self._wait_until(
            lambda: any(event.kind == "allocating" for event in read_events(self.bench.root, self.job_id)), "it waits"
        )

    def wait_for_output(self, text: str) -> None:
        """Until the script has printed this."""
        self._wait_until(lambda: text in self.output, text)

    def wait(self) -> Outcome:
        assert self._process is not None
        exit_code = self._process.wait(TIMEOUT_S)
        return Outcome(exit_code, self.output, "")

    def finish(self, status: str = "success") -> list[AttemptRecord]:
        """Wait for the script's end; returns all attempts."""
        outcome = self.wait()
        state = jobs.read_state(self.bench.root, self.job_id)
        assert state.status == status, (state, outcome)
        return read_attempts(self.bench.root, self.job_id)

    def final_states(self) -> list[list[object]]:
        """Rank, hash chain, hash of the weights and steps of emergency saves, as each rank printed them at the end."""
        lines = [line.text for line in read_logs(self.bench.root, self.job_id) if line.text.startswith("final ")]
        return sorted(json.loads(line.removeprefix("final ")) for line in lines)

    def saved_states(self, directory: Path) -> list[tuple[int, str]]:
        """Step and hash chain of each rank in the newest checkpoint, which goes into a new directory."""
        manifest = checkpoints.latest_committed(self.bench.root, self.job_id)
        assert manifest is not None
        checkpoints.restore(self.bench.root, manifest, 0, directory)
        saved = [json.loads((directory / f"rank-{rank}.json").read_text()) for rank in range(2)]
        return [(step, state) for step, state, _ in saved]

    def run(self, *arguments: object) -> Outcome:
        return self.bench.run(*arguments, timeout_s=TIMEOUT_S)

    @property
    def output(self) -> str:
        return self._script.with_suffix(".out").read_text()

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _wait_until(self, condition: Callable[[], bool], what: str) -> None:
        process = self._process
        assert process is not None
        wait_until(lambda: condition() or process.poll() is not None, what, TIMEOUT_S)
        assert condition(), self.output


def make_job(directory: Path, ray_env: Mapping[str, str], script: str = SCRIPT) -> FunctionJob:
    """One with a storage root of its own.

    Args:
        ray_env: variables that name a Ray cluster; without them it starts one of its own.
    """
    directory.mkdir(exist_ok=True)
    (directory / "training.py").write_text(TRAINING)
    (directory / "train.py").write_text(script)
    bench = Workbench(directory / "storage", directory / "no-cluster")
    bench.env.update(ray_env)
    return FunctionJob(bench, directory / "train.py")


def expected_states(*emergency_steps: int) -> list[list[object]]:
    """What ``final_states`` gives when every step was made once.

    Args:
        emergency_steps: those at which the ranks were told to save.
    """
    chains, weights = _train_undisturbed()
    return [[rank, chain, weights, list(emergency_steps)] for rank, chain in enumerate(chains)]


def expected_chain(rank: int, step: int) -> str:
    """The hash chain of a rank after this step."""
    state = str(rank)
    for done in range(step):
        state = _training()["advance"](state, done)
    return state


@functools.cache
def _training() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(TRAINING, "training.py", "exec"), names)
    return names


@functools.cache
def _train_undisturbed() -> tuple[list[str], str]:
    """The hash chains of both ranks and the hash of their weights: one process makes what two ranks make together."""
    training = _training()
    model = training["make_model"]()
    optimizer = training["make_optimizer"](model)
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        for rank in range(2):
            # Half of each rank's gradients, added: so does DistributedDataParallel, to the last bit.
            (training["loss_of"](model, step, rank) / 2).backward()
        optimizer.step()
    return [expected_chain(rank, NUM_STEPS) for rank in range(2)], training["hash_weights"](model)
