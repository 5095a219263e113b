"""A function job whose every step follows from the one before: one that is lost, or made twice, changes the last."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from periflow_ray import jobs
from periflow_ray.jobs.attempts import AttemptRecord, read_attempts
from periflow_ray.jobs.events import read_events
from periflow_ray.jobs.logs import read_logs
from periflow_ray.store import checkpoints
from support.workbench import Outcome, Workbench, wait_until

TIMEOUT_S = 180
NUM_STEPS = 300
# Every step's state follows from the one before: a step that is lost, or made twice, changes the last one.
SCRIPT = """
import json, sys
import periflow_ray as pf

def train(config):
    import hashlib, json, os, time
    from pathlib import Path
    import ray.train, ray.train.torch, torch
    import periflow_ray as pf

    rank = ray.train.get_context().get_world_rank()
    directory = Path(os.environ["CKPT_DIR"])
    path = directory / f"rank-{rank}.json"
    torch.manual_seed(0)
    model = ray.train.torch.prepare_model(torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    step, state, emergency_steps = 0, str(rank), []
    is_resumed = path.exists()
    if is_resumed:
        assert ray.train.get_checkpoint() is not None
        step, state, emergency_steps = json.loads(path.read_text())
        saved = torch.load(directory / "model.pt")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    pf.init(total_train_steps=config["num_steps"])
    while step < config["num_steps"]:
        with pf.train_step():
            state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
            data = torch.randn(4, 8, generator=torch.Generator().manual_seed(2 * step + rank))
            loss = model(data).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(0 if is_resumed else config["step_time_s"])
        step += 1
        is_emergency = pf.is_emergency_save()
        if is_emergency:
            emergency_steps.append(step)
        if step % 50 == 0 or is_emergency:
            path.write_text(json.dumps([step, state, emergency_steps]))
            if rank == 0:
                weights = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(weights, directory / "model.pt")
            pf.upload_checkpoint()
        if step == 60 and not is_resumed and config.get("harm") == "hang" and rank == 1:
            stand_still = time.sleep
            stand_still(10_000)
        if step == 50 and not is_resumed and config.get("harm") == "raise" and rank == 1:
            raise ValueError("boom right after the save")
    weights = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    print("final", json.dumps([rank, state, hashlib.sha256(weights).hexdigest(), emergency_steps]))

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
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self, *, num_steps: int = NUM_STEPS, step_time_s: float = 0.05, harm: str = "", **options: object
    ) -> None:
        config = {"num_steps": num_steps, "step_time_s": step_time_s, "harm": harm}
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

    def press_ctrl_c(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGINT)

    def send(self, signum: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(signum)

    def wait_for_checkpoint(self) -> None:
        self._wait_until(lambda: checkpoints.latest_committed(self.bench.root, self.job_id) is not None, "a checkpoint")

    def wait_for_machines(self) -> None:
        """Until it waits for them."""
        self._wait_until(
            lambda: any(event.kind == "allocating" for event in read_events(self.bench.root, self.job_id)), "it waits"
        )

    def wait(self) -> Outcome:
        assert self._process is not None
        exit_code = self._process.wait(TIMEOUT_S)
        return Outcome(exit_code, self.output, "")

    def finish(self, status: str = "success") -> list[AttemptRecord]:
        outcome = self.wait()
        state = jobs.read_state(self.bench.root, self.job_id)
        assert state.status == status, (state, outcome)
        return read_attempts(self.bench.root, self.job_id)

    def final_states(self) -> list[list[object]]:
        """Rank, hash chain, hash of the weights and steps of emergency saves, as each rank printed them at the end."""
        lines = [line.text for line in read_logs(self.bench.root, self.job_id) if line.text.startswith("final ")]
        return sorted(json.loads(line.removeprefix("final ")) for line in lines)

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
    (directory / "train.py").write_text(script)
    bench = Workbench(directory / "storage", directory / "no-cluster")
    bench.env.update(ray_env)
    return FunctionJob(bench, directory / "train.py")


def after_emergency_save(undisturbed: list[list[object]], *steps: int) -> list[list[object]]:
    """The same end, but for the steps at which each rank was told to save."""
    return [[*state[:3], list(steps)] for state in undisturbed]
