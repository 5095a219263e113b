"""A sweep's journal: one line for each thing that happened, never changed; all that is known of the trials is in it.

The sweep's driver alone writes it. Whoever reads it gets the same ``Trial`` from the same lines, and so does a driver
that takes up a sweep whose driver died.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from periflow_ray.finite_json import dump_json
from periflow_ray.spec.sweep_parameters import Value
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.segments import SegmentWriter, read_lines

TrialStatus = Literal["running", "success", "early", "failed", "stopped"]
"""``early``: the scheduler ended it, because others are better; ``stopped``: a user or a limit did."""
# A trial that was stopped goes on when its sweep does.
FINAL: frozenset[str] = frozenset({"success", "early", "failed"})


@dataclass(frozen=True)
class Clone:
    """A trial went on from another trial's checkpoint.

    Args:
        donor: number of the other trial.
        checkpoint: its id.
        step: at which it was made.
        job_id: the job that goes on from it.
    """

    donor: int
    checkpoint: str
    step: int
    job_id: int


@dataclass
class Trial:
    """What is known of a trial. Times in Unix seconds.

    Args:
        job_ids: the jobs that it was, the newest last.
        reports: each step at which the metric was reported, and its value; NaN where it is none.
        why: why it ended, if there is more to say.
        num_attempts: starts of its command, once it has ended.
        clones: how it came to where it is, the newest last.
        ran_s: seconds that it had run for when it was last interrupted.
        runs_since_unix_s: since when it runs; None if it does not.
        heard_unix_s: when anything was last heard of it.
        vm: VM type of the machine that it ran on last; None where that is not known.
    """

    number: int
    parameters: Mapping[str, Value]
    began_unix_s: float
    job_ids: list[int] = field(default_factory=list)
    reports: list[tuple[int, float]] = field(default_factory=list)
    status: TrialStatus = "running"
    ended_unix_s: float | None = None
    why: str | None = None
    num_attempts: int | None = None
    clones: list[Clone] = field(default_factory=list)
    ran_s: float = 0.0
    runs_since_unix_s: float | None = None
    heard_unix_s: float = 0.0
    vm: str | None = None

    @property
    def is_final(self) -> bool:
        """Whether nothing more is to come of it, also when the sweep is taken up again."""
        return self.status in FINAL

    @property
    def duration_s(self) -> float:
        """Seconds that it has run for until now, or until its end; not those between two drivers of the sweep."""
        since_unix_s = self.runs_since_unix_s
        return self.ran_s + (0.0 if since_unix_s is None else max(0.0, time.time() - since_unix_s))

    @property
    def step(self) -> int:
        """The last step that was reported."""
        return self.reports[-1][0] if self.reports else 0

    @property
    def last(self) -> float | None:
        """The metric as it was reported last."""
        return self.reports[-1][1] if self.reports else None

    def take_report(self, step: int, value: float) -> None:
        """The metric at a step."""
        # One that was started again reports some steps a second time.
        while self.reports and self.reports[-1][0] >= step:
            self.reports.pop()
        self.reports.append((step, value))

    def take_time(self, time_unix_s: float, *, is_start: bool) -> None:
        """It starts, or ends; where a driver died before it told of an end, that was when anything was last heard."""
        if self.runs_since_unix_s is not None:
            until_unix_s = self.heard_unix_s if is_start else time_unix_s
            self.ran_s += max(0.0, until_unix_s - self.runs_since_unix_s)
        self.runs_since_unix_s = time_unix_s if is_start else None

    def best(self, mode: str) -> float | None:
        """The best value of the metric; NaN is none."""
        values = [value for _, value in self.reports if not math.isnan(value)]
        if not values:
            return None
        return max(values) if mode == "max" else min(values)


class Journal:
    """Takes up the journal of a sweep and goes on with it; a line counts once ``flush`` has returned.

    One thread calls.
    """

    def __init__(self, root: StorageRoot, sweep_id: int) -> None:
        self._writer = SegmentWriter(root, _prefix(sweep_id))
        self.trials = read_trials(root, sweep_id)
        """What is known of each trial that has begun, by number."""
        self.is_flushed = True
        """Whether all lines are in the storage."""

    def begin(self, number: int, job_id: int, parameters: Mapping[str, Value], tune_id: str) -> None:
        """A trial is to begin, or to go on, as this job."""
        self._append("begin", number, job=job_id, parameters=dict(parameters), tune=tune_id)

    def clone(self, number: int, clone: Clone, parameters: Mapping[str, Value], tune_id: str) -> None:
        """A trial is to go on from another one's checkpoint."""
        self._append(
            "begin",
            number,
            job=clone.job_id,
            parameters=dict(parameters),
            tune=tune_id,
            donor=clone.donor,
            checkpoint=clone.checkpoint,
            step=clone.step,
        )

    def start(self, number: int) -> None:
        """There is room for a trial that was to begin: from now on it runs."""
        self._append("start", number)

    def report(self, number: int, step: int, value: float) -> None:
        """The metric of a trial at a step."""
        self._append("report", number, step=step, value=value)

    def place(self, number: int, vm: str) -> None:
        """A trial runs on a machine of this VM type."""
        self._append("place", number, vm=vm)

    def end(self, number: int, status: TrialStatus, why: str | None, num_attempts: int | None) -> None:
        """A trial has ended; ``num_attempts`` is None where nobody knows."""
        self._append("end", number, status=status, why=why, attempts=num_attempts)

    def retry(self, number: int) -> None:
        """A trial that failed is to run again, when its sweep does."""
        self._append("retry", number)

    def flush(self) -> None:
        """Make all lines visible, and outlive a loss of power.

        Raises:
            OSError, StorageError: not now; the next flush has them, too.
        """
        if not self.is_flushed:
            self._writer.flush(is_durable=True)
            self.is_flushed = True

    def _append(self, kind: str, number: int, **values: Any) -> None:
        event = {"kind": kind, "trial": number, "time": round(time.time(), 3), **values}
        self._writer.append(dump_json(event).encode() + b"\n")
        self.is_flushed = False
        _take(self.trials, event)


def read_trials(root: StorageRoot, sweep_id: int) -> dict[int, Trial]:
    """What the journal knows of each trial that has begun, by number; lines that are damaged are left out."""
    return replay(read_lines(root, _prefix(sweep_id)))


def replay(lines: Iterable[bytes]) -> dict[int, Trial]:
    """What follows from lines of a journal."""
    trials: dict[int, Trial] = {}
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            _take(trials, json.loads(line))
    return trials


def _take(trials: dict[int, Trial], event: Mapping[str, Any]) -> None:
    number = int(event["trial"])
    match event["kind"]:
        case "begin":
            trial = trials.setdefault(number, Trial(number, event["parameters"], event["time"]))
            trial.parameters = event["parameters"]
            trial.status, trial.ended_unix_s, trial.why = "running", None, None
            trial.take_time(event["time"], is_start=True)
            if event["job"] not in trial.job_ids:
                trial.job_ids.append(event["job"])
                if "donor" in event:
                    trial.clones.append(Clone(event["donor"], event["checkpoint"], event["step"], event["job"]))
                    # What came later is not where it goes on from.
                    trial.reports = [report for report in trial.reports if report[0] <= event["step"]]
        case "start":
            trials[number].take_time(event["time"], is_start=True)
            if not trials[number].ran_s:
                trials[number].began_unix_s = event["time"]
        case "report":
            trials[number].take_report(int(event["step"]), float(event["value"]))
        case "place":
            trials[number].vm = str(event["vm"])
        case "retry":
            trials[number].status, trials[number].runs_since_unix_s = "stopped", None
        case "end":
            trial = trials[number]
            trial.status, trial.ended_unix_s, trial.why = event["status"], event["time"], event.get("why")
            trial.num_attempts = event.get("attempts")
            trial.take_time(event["time"], is_start=False)
    trials[number].heard_unix_s = event["time"]


def _prefix(sweep_id: int) -> str:
    return job_key(sweep_id, "journal")


def find_best(trials: Iterable[Trial], mode: str) -> Trial | None:
    """The trial with the best value of the metric, of several the first; None if no trial has any."""
    return next(iter(rank_trials([trial for trial in trials if trial.best(mode) is not None], mode)), None)


def rank_trials(trials: Iterable[Trial], mode: str) -> list[Trial]:
    """Trials, the best first; those without a value of the metric come last."""
    sign = -1 if mode == "max" else 1

    def key(trial: Trial) -> tuple[bool, float, int]:
        best = trial.best(mode)
        return best is None, 0.0 if best is None else sign * best, trial.number

    return sorted(trials, key=key)
