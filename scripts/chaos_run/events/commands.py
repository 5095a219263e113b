"""What users do to a job that runs: stop, resume on another number of devices or twice at once, delete checkpoints."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

from chaos_run.events.event import Event
from chaos_run.training import Training


def _resume(training: Training, num_devices: int) -> None:
    resumed = training.resume("--num-devices", num_devices)
    assert resumed.exit_code == 0, resumed


def _stop(training: Training, *options: str) -> int:
    """Stop the job; returns the number of its last attempt."""
    stopped = training.run("job", "stop", training.job_id, *options)
    assert stopped.exit_code == 0, stopped
    assert training.status() == "stopped", stopped
    return training.attempts()[-1].number


def _choose_devices(training: Training, chance: random.Random) -> int:
    return chance.randint(1, training.setting.num_machines)


def _stop_and_resume(training: Training, chance: random.Random) -> str:
    num_devices = _choose_devices(training, chance)
    last = training.attempts()[-1]
    _stop(training)
    stopped = training.attempts()[-1]
    # Where the job made steps, a stop saves the last of them.
    if stopped.number == last.number and stopped.save is not None and stopped.save.step is not None:
        assert stopped.last_step == stopped.resumable_step, f"the stop lost steps: {stopped}"
    _resume(training, num_devices)
    return f"resumed on {num_devices} devices"


def _stop_now(training: Training, chance: random.Random) -> str:
    num_devices = _choose_devices(training, chance)
    _stop(training, "--now")
    _resume(training, num_devices)
    return f"resumed on {num_devices} devices"


def _resume_twice(training: Training, chance: random.Random) -> str:
    num_devices = _choose_devices(training, chance)
    _stop(training)
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda _: training.resume("--num-devices", num_devices), range(2)))
    succeeded = [outcome for outcome in outcomes if outcome.exit_code == 0]
    assert len(succeeded) == 1, f"of two at once, one resumes the job and the other one is told: {outcomes}"
    assert not any("Traceback" in outcome.stderr for outcome in outcomes), outcomes
    return f"on {num_devices} devices"


def _delete_checkpoint(training: Training, chance: random.Random) -> str:
    name = chance.choice(list(training.committed())[-3:])
    training.lost_on_purpose.add(training.attempts()[-1].number)
    deleted = training.run("checkpoint", "delete", f"{training.job_id}/{name}", "--yes")
    # Retention may have been faster.
    assert deleted.exit_code == 0 or name not in training.committed(), deleted
    return f"{name}, exit code {deleted.exit_code}"


EVENTS = [
    Event("stop and resume", _stop_and_resume),
    Event("stop at once and resume", _stop_now),
    Event("resume twice", _resume_twice),
    Event("delete a checkpoint", _delete_checkpoint),
]
