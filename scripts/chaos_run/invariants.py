"""What must hold after each event and at the end. Each check raises AssertionError with what it found."""

from __future__ import annotations

import itertools
import re

from support.workbench import processes_with, wait_until

from chaos_run.training import KINDS, Training
from periflow_ray import jobs
from periflow_ray.errors import NotFoundError
from periflow_ray.jobs.events import read_events
from periflow_ray.store import checkpoints

TIDY_WITHIN_S = 60.0


def check_while_running(training: Training) -> None:
    """After an event, when the job goes on."""
    _check_checkpoints(training)
    _check_attempts(training)


def check_at_end(training: Training) -> None:
    """After the job's success."""
    _check_checkpoints(training)
    _check_attempts(training)
    _check_final_state(training)
    _check_account(training)
    _check_nothing_left(training)


def _check_checkpoints(training: Training) -> None:
    """A committed checkpoint verifies, unless this run damaged it."""
    for name, manifest in training.committed().items():
        if name in training.damaged:
            continue
        try:
            problems = [f"{problem.key} {problem.text}" for problem in checkpoints.verify(training.root, manifest)]
        except NotFoundError as err:
            problems = [str(err)]
        # Retention may be deleting it: a checkpoint goes with its manifest first.
        assert not problems or name not in training.committed(), f"{name} does not verify: {problems}"


def _check_attempts(training: Training) -> None:
    """Attempts follow one another, and none goes on from before a checkpoint that the one before it had."""
    attempts = training.attempts()
    assert [attempt.number for attempt in attempts] == list(range(1, len(attempts) + 1)), attempts
    for earlier, later in itertools.pairwise(attempts):
        assert later.resumed_step <= earlier.last_step, f"steps from nowhere: {earlier}, then {later}"
        is_complete = later.resumed_step >= earlier.resumable_step
        assert is_complete or earlier.number in training.lost_on_purpose, f"steps lost: {earlier}, then {later}"


def _check_final_state(training: Training) -> None:
    """The last state is that of an undisturbed run, bit by bit."""
    name, step, state = training.read_state()
    assert step == training.chain.num_steps, f"{name} is of step {step} of {training.chain.num_steps}"
    assert state == training.chain.final_state(0), f"{name} has another state than the undisturbed run"


def _check_account(training: Training) -> None:
    """`job view` counts what the attempts say, and the events tell of each attempt."""
    view, attempts = training.view(), training.attempts()
    assert view["status"] == "success", view
    accounts = view["attempts"]
    assert [account["number"] for account in accounts] == [attempt.number for attempt in attempts], view
    num_kept = sum(attempt["last_step"] - attempt["resumed_step"] - attempt["num_lost_steps"] for attempt in accounts)
    assert num_kept == training.chain.num_steps, f"{num_kept} steps kept of {training.chain.num_steps}: {accounts}"
    total = view["account"]
    assert total["num_lost_steps"] == sum(account["num_lost_steps"] for account in accounts), view
    assert total["goodput"] is None or 0 <= total["goodput"] <= 1, view
    told = {event.attempt for event in read_events(training.root, training.job_id)}
    assert told >= {attempt.number for attempt in attempts}, f"attempts without an event: {attempts}"


def _check_nothing_left(training: Training) -> None:
    """No process of the job, no sandbox on a machine that its last attempt used, no checkpoint half there."""
    wait_until(lambda: not any(map(training.find, KINDS)), "the job's processes end", TIDY_WITHIN_S)
    for machine in training.cluster.workers:
        left = processes_with(f"{machine.temp_dir}/periflow-")
        assert not left, f"processes of the job on {machine.name}: {left}"
    assert jobs.read_written_state(training.root, training.job_id).has_ended
    files = training.root.list_files("")
    temporary = [key for key in files if re.search(r"\.(part|tmp)\b", key)]
    assert not temporary, f"temporary files in the storage root: {temporary}"
