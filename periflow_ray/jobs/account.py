"""What a job's attempts cost: steps and time lost, and the share of the devices' time that made steps. Pure.

A step counts as kept if no later attempt had to make it again. Device-seconds are seconds times the devices of the
attempt. The clock of the goodput runs from the start of the first attempt, and stands still while an ended job waits
for a user to take it up again.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from periflow_ray.jobs.attempts import AttemptRecord, EndCause, SaveRecord, close_attempt
from periflow_ray.jobs.records import JobState

_SUBJECT = re.compile(r"(node \d+(?:, rank \d+)?): it ")
# A notice is told with its exact duration.
_ANNOUNCED = re.compile(r" in \d+ s$")


@dataclass(frozen=True)
class AttemptAccount:
    """One attempt and what its end cost.

    ``ended_unix_s`` is None while it runs. ``downtime_s`` is from its last step to the next attempt's first one, None
    where there is no such step. ``num_lost_steps`` are those to be made again, ``lost_device_s`` is what they took.
    """

    number: int
    num_devices: int
    started_unix_s: float
    ended_unix_s: float | None
    resumed_step: int
    last_step: int
    cause: EndCause | None
    text: str
    downtime_s: float | None
    num_lost_steps: int
    lost_device_s: float


@dataclass(frozen=True)
class JobAccount:
    """All attempts; ``goodput`` is ``productive_device_s`` over ``wall_device_s``, None before any time has passed."""

    attempts: tuple[AttemptAccount, ...]
    num_lost_steps: int
    lost_device_s: float
    productive_device_s: float
    wall_device_s: float
    goodput: float | None


def build_account(
    records: Sequence[AttemptRecord],
    state: JobState,
    *,
    now_unix_s: float,
    step: int = 0,
    resumable_step: int = 0,
    resumed_after: Collection[int] = (),
) -> JobAccount:
    """Work out what the attempts of a job cost.

    Args:
        records: all attempts, in their order; the last one may still run.
        step: the job's newest step.
        resumable_step: step of the newest committed checkpoint.
        resumed_after: numbers of attempts after which the job had ended and a user took it up again.
    """
    attempts = _bring_up_to_date(records, state, now_unix_s, step, resumable_step)
    step_times_s = _step_times_s(attempts)
    accounts = tuple(
        _build_attempt(attempt, attempts[index + 1 :], state, step_time_s, resumed_after)
        for index, (attempt, step_time_s) in enumerate(zip(attempts, step_times_s, strict=True))
    )
    productive_device_s = sum(
        _num_kept_steps(attempt, attempts[index + 1 :]) * step_time_s * attempt.num_devices
        for index, (attempt, step_time_s) in enumerate(zip(attempts, step_times_s, strict=True))
    )
    wall_device_s = sum(
        (_span_end_unix_s(attempt, after, state, now_unix_s, resumed_after) - attempt.started_unix_s)
        * attempt.num_devices
        for attempt, after in itertools.zip_longest(attempts, attempts[1:])
    )
    return JobAccount(
        attempts=accounts,
        num_lost_steps=sum(account.num_lost_steps for account in accounts),
        lost_device_s=sum(account.lost_device_s for account in accounts),
        productive_device_s=productive_device_s,
        wall_device_s=wall_device_s,
        goodput=productive_device_s / wall_device_s if wall_device_s > 0 else None,
    )


def describe_goodput(account: JobAccount) -> str:
    """``93.1 % of 410 device-seconds made steps that were kept``."""
    if account.goodput is None:
        return "not known yet"
    wall = format_number(account.wall_device_s)
    return f"{100 * account.goodput:.1f} % of {wall} device-seconds made steps that were kept"


def describe_lost(num_lost_steps: int, lost_device_s: float, *, is_least: bool = False) -> str:
    """``45 steps, 4.6 device-seconds``.

    Args:
        is_least: steps that nobody could record may be lost as well.
    """
    least = "at least " if is_least else ""
    noun = "step" if num_lost_steps == 1 else "steps"
    return f"{least}{num_lost_steps} {noun}, {format_number(lost_device_s)} device-seconds"


def format_number(value: float) -> str:
    """One digit after the point below ten, none above: ``3.1``, ``0``, ``14``."""
    return f"{value:.1f}".removesuffix(".0") if abs(value) < 9.95 else f"{value:.0f}"


def _bring_up_to_date(
    records: Sequence[AttemptRecord], state: JobState, now_unix_s: float, step: int, resumable_step: int
) -> list[AttemptRecord]:
    """Close the attempts that ended with their driver, and give the one that runs its newest step."""
    attempts = []
    for record, after in itertools.zip_longest(records, records[1:]):
        if after is not None:
            closed = close_attempt(
                record,
                ended_unix_s=after.started_unix_s,
                last_step=after.resumed_step,
                resumable_step=after.resumed_step,
            )
        elif state.has_ended:
            ended_unix_s = now_unix_s if state.ended_unix_s is None else state.ended_unix_s
            closed = close_attempt(record, ended_unix_s=ended_unix_s, last_step=step, resumable_step=resumable_step)
        else:
            closed = _renew(record, now_unix_s, step)
        attempts.append(closed)
    return attempts


def _renew(record: AttemptRecord, now_unix_s: float, step: int) -> AttemptRecord:
    if record.ended_unix_s is not None or record.first_step_unix_s is None:
        return record
    return dataclasses.replace(record, last_step=max(record.last_step, step), last_step_unix_s=now_unix_s)


def _step_times_s(attempts: Sequence[AttemptRecord]) -> list[float]:
    """Seconds of a step in each attempt: its own, where that cannot be told the others' mean, else 0.

    The first step's own duration is not known, because an attempt's beginning is before the user's code starts.
    """
    own = []
    for attempt in attempts:
        num_intervals = attempt.last_step - attempt.resumed_step - 1
        first_unix_s, last_unix_s = attempt.first_step_unix_s, attempt.last_step_unix_s
        if first_unix_s is None or last_unix_s is None or num_intervals < 1:
            own.append((0.0, 0))
        else:
            own.append((max(0.0, last_unix_s - first_unix_s), num_intervals))
    num_all = sum(num_intervals for _, num_intervals in own)
    mean_s = sum(duration_s for duration_s, _ in own) / num_all if num_all else 0.0
    times_s = []
    for attempt, (duration_s, num_intervals) in zip(attempts, own, strict=True):
        step_time_s = duration_s / num_intervals if duration_s > 0 else mean_s
        num_steps = attempt.last_step - attempt.resumed_step
        # Several steps that were reported at once look slower or faster than they were, but they fit into the attempt.
        limit_s = (attempt.last_step_unix_s or attempt.started_unix_s) - attempt.started_unix_s
        times_s.append(min(step_time_s, limit_s / num_steps) if num_steps > 0 else 0.0)
    return times_s


def _build_attempt(
    attempt: AttemptRecord,
    later: Sequence[AttemptRecord],
    state: JobState,
    step_time_s: float,
    resumed_after: Collection[int],
) -> AttemptAccount:
    num_lost_steps = 0
    if later:
        num_lost_steps = max(0, attempt.last_step - later[0].resumed_step)
    elif attempt.cause is not None:
        num_lost_steps = max(0, attempt.last_step - attempt.resumable_step)
    lost_device_s = num_lost_steps * step_time_s * attempt.num_devices
    is_over = not later and state.has_ended
    # One that made no step is part of the time that the resumption took.
    resumed = next((record for record in later if record.first_step_unix_s is not None), None)
    downtime_s = None
    if resumed is not None and attempt.last_step_unix_s is not None and resumed.first_step_unix_s is not None:
        downtime_s = max(0.0, resumed.first_step_unix_s - attempt.last_step_unix_s)
    parts = [_describe_end(attempt), *_describe_save(attempt.save, attempt.cause)]
    if attempt.cause is not None:
        if attempt.number in resumed_after:
            parts.append("taken up again" + (f" at step {later[0].resumed_step}" if later else ""))
        elif not is_over:
            parts.append(_describe_resumption(attempt, resumed, downtime_s))
        parts.append(f"lost {describe_lost(num_lost_steps, lost_device_s, is_least=attempt.cause == 'driver')}")
    return AttemptAccount(
        number=attempt.number,
        num_devices=attempt.num_devices,
        started_unix_s=attempt.started_unix_s,
        ended_unix_s=attempt.ended_unix_s,
        resumed_step=attempt.resumed_step,
        last_step=attempt.last_step,
        cause=attempt.cause,
        text="; ".join(parts),
        downtime_s=None if attempt.number in resumed_after else downtime_s,
        num_lost_steps=num_lost_steps,
        lost_device_s=lost_device_s,
    )


def _describe_end(attempt: AttemptRecord) -> str:
    if attempt.cause is None:
        if attempt.ended_unix_s is not None:
            return f"ran to the end at step {attempt.last_step}"
        return "starts" if attempt.first_step_unix_s is None else f"runs, at step {attempt.last_step}"
    text = _SUBJECT.sub(r"\1 ", attempt.text).removesuffix(".")
    if attempt.cause == "preemption" and attempt.save is not None:
        return f"{_ANNOUNCED.sub('', text)}, {format_number(attempt.save.notice_s)} s notice"
    if attempt.cause in ("stop", "hang"):
        return text
    return f"{text} {'before its first step' if attempt.first_step_unix_s is None else f'at step {attempt.last_step}'}"


def _describe_save(save: SaveRecord | None, cause: EndCause | None) -> list[str]:
    if save is None:
        return []
    if save.step is None or save.save_time_s is None:
        return ["nothing was saved in time"]
    what = "notice" if cause == "preemption" else "request"
    return [f"saved at step {save.step}, {format_number(save.save_time_s)} s after the {what}"]


def _describe_resumption(attempt: AttemptRecord, resumed: AttemptRecord | None, downtime_s: float | None) -> str:
    if resumed is None:
        return "not resumed yet"
    after = "" if downtime_s is None else f" after {format_number(downtime_s)} s"
    return f"resumed at step {resumed.resumed_step}{after}"


def _num_kept_steps(attempt: AttemptRecord, later: Sequence[AttemptRecord]) -> int:
    kept_until = min([attempt.last_step, *(record.resumed_step for record in later)])
    if not later and attempt.cause is not None:
        kept_until = min(kept_until, attempt.resumable_step)
    return max(0, kept_until - attempt.resumed_step)


def _span_end_unix_s(
    attempt: AttemptRecord,
    after: AttemptRecord | None,
    state: JobState,
    now_unix_s: float,
    resumed_after: Collection[int],
) -> float:
    """When the time that counts for an attempt ends: what follows it until the next one starts is its cost as well."""
    if attempt.number in resumed_after and attempt.ended_unix_s is not None:
        return attempt.ended_unix_s
    if after is not None:
        return after.started_unix_s
    if not state.has_ended:
        return now_unix_s
    return now_unix_s if attempt.ended_unix_s is None else attempt.ended_unix_s
