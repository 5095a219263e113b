"""From one event to the next: act, wait until the job has recovered, check."""

from __future__ import annotations

import contextlib
import random
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass

from support.workbench import wait_until

from chaos_run.events.event import BOUND_S
from chaos_run.events.registry import EVENTS, names_for
from chaos_run.invariants import check_at_end, check_while_running
from chaos_run.janitor import tidy_directory
from chaos_run.schedule import Planned, choose_setting, plan_events
from chaos_run.training import STEP_TIME_S, Training, open_training
from periflow_ray.jobs.events import read_events

ENDS_WITHIN_S = 240.0
# The second of these cannot have been on its way before the event.
NUM_NEW_CHECKPOINTS = 2
NUM_EVENTS_TOLD = 60
_ASK_EVERY_S = 5.0


@dataclass(frozen=True)
class Happened:
    """An event that has happened, what it did, and how long the job took to save new steps; None if that was not waited
    for."""

    planned: Planned
    said: str
    recovery_s: float | None


class BrokenPromiseError(Exception):
    """What an event showed."""


def run_chaos(
    seed: int, minutes: float, only: Collection[str], happened: list[Happened], say: Callable[[str], None]
) -> None:
    """Run a training under the events of a seed.

    Args:
        happened: gets each event, for the table at the end.
    Raises:
        BrokenPromiseError: with the event that showed it.
    """
    setting = choose_setting(seed)
    say(f"seed {seed}: {setting}")
    # More than it can make in that time, so that it ends only when it is told to hurry.
    num_steps = int(minutes * 60 / STEP_TIME_S) + 2000
    with tidy_directory() as directory, open_training(directory, setting, num_steps) as training:
        training.submit()
        say("the training runs")
        end_s = time.monotonic() + 60 * minutes
        for planned in plan_events(seed, names_for(training.storage.kind, only)):
            if time.monotonic() > end_s:
                break
            event = EVENTS[planned.name]
            try:
                if event.needs_quiet:
                    _recover(training, BOUND_S)
                time.sleep(planned.pause_s)
                say(str(planned))
                said = event.act(training, random.Random(planned.seed))
                recovery_s = None
                if not planned.is_joined or event.needs_quiet:
                    recovery_s = _recover(training, event.bound_s)
                    check_while_running(training)
            except Exception as err:
                raise BrokenPromiseError(_describe(training, str(planned), err)) from err
            happened.append(Happened(planned, said, recovery_s))
            recovery = "" if recovery_s is None else f"; {recovery_s:.1f} s until new steps were saved"
            say(f"   {said}{recovery}; attempt {training.attempts()[-1].number}")
        try:
            _recover(training, BOUND_S)
            training.hurry()
            wait_until(lambda: training.status() in ("success", "failed", "stopped"), "the job ends", ENDS_WITHIN_S)
            check_at_end(training)
        except Exception as err:
            raise BrokenPromiseError(_describe(training, "at the end", err)) from err


def _describe(training: Training, when: str, err: Exception) -> str:
    """What was found, where, and what the job has told."""
    frames = [frame.name for frame in traceback.extract_tb(err.__traceback__)]
    lines = [f"{when}: {type(err).__name__} in {' > '.join(frames[1:])}: {err}"]
    with contextlib.suppress(Exception):  # The storage root may be what is broken.
        lines += [f"   {attempt}" for attempt in training.attempts()]
        events = read_events(training.root, training.job_id)[-NUM_EVENTS_TOLD:]
        lines += [f"   {event.time_unix_s:.1f} attempt {event.attempt} {event.kind}: {event.text}" for event in events]
    return "\n".join(lines)


def _recover(training: Training, bound_s: float) -> float:
    """Wait until the job has saved new steps. Returns the seconds that it took."""
    began_s = time.monotonic()
    known = set(training.committed())
    found: set[str] = set()
    next_view_s = began_s + _ASK_EVERY_S
    while len(found) < NUM_NEW_CHECKPOINTS:
        now_s = time.monotonic()
        assert now_s < began_s + bound_s, f"no new steps within {bound_s:.0f} s: {training.view()}"
        time.sleep(0.1)
        found |= training.committed().keys() - known
        if now_s < next_view_s:
            continue
        next_view_s = now_s + _ASK_EVERY_S
        # One that was announced to go may leave the cluster long after its notice.
        training.restore_machines()
        # Only the command asks the cluster whether a job that says nothing is alive.
        view = training.view()
        assert view["status"] not in ("failed", "stopped", "success"), f"the job has ended: {view}"
    return time.monotonic() - began_s
