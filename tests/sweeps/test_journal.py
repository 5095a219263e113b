"""What a sweep's journal tells of its trials, whoever wrote it and how far."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from periflow_ray.store.root import StorageRoot
from periflow_ray.store.segments import read_lines
from periflow_ray.sweeps.journal import Clone, Journal, Trial, find_best, rank_trials, read_trials, replay


@pytest.fixture
def root(tmp_path: Path) -> StorageRoot:
    return StorageRoot(str(tmp_path / "storage"))


def begun(number: int, **given: Any) -> bytes:
    line = {"kind": "begin", "trial": number, "time": 10.0, "job": 20 + number, "parameters": {"lr": 0.1}, "tune": "a"}
    return json.dumps({**line, **given}).encode()


def reported(number: int, step: int, value: object) -> bytes:
    return json.dumps({"kind": "report", "trial": number, "time": 11.0, "step": step, "value": value}).encode()


def ended(number: int, status: str) -> bytes:
    return json.dumps({"kind": "end", "trial": number, "time": 12.0, "status": status, "attempts": 2}).encode()


def test_what_was_written_is_read_by_whoever_comes_next(root: StorageRoot) -> None:
    first = Journal(root, 7)
    first.begin(1, 8, {"lr": 0.5, "name": "x"}, "abc")
    first.report(1, 10, 0.25)
    first.report(1, 20, math.nan)
    first.begin(2, 9, {"lr": 0.1, "name": "y"}, "def")
    first.end(1, "success", None, 1)
    first.flush()
    assert first.trials.keys() == {1, 2}
    first.report(2, 10, 0.5)
    # Killed now: what was not flushed is not there.
    second = Journal(root, 7)
    second.begin(2, 9, {"lr": 0.1, "name": "y"}, "ghi")
    second.flush()
    trials = read_trials(root, 7)
    assert (trials[1].parameters, trials[1].job_ids) == ({"lr": 0.5, "name": "x"}, [8])
    assert trials[1].reports[0] == (10, 0.25)
    assert math.isnan(trials[1].reports[1][1])
    assert (trials[1].status, trials[1].is_final, trials[1].num_attempts) == ("success", True, 1)
    assert (trials[2].status, trials[2].is_final, trials[2].reports, trials[2].job_ids) == ("running", False, [], [9])
    # One line for each thing that happened.
    assert len(read_lines(root, "jobs/7/journal")) == 6


def test_a_trial_that_is_started_again_reports_no_step_twice() -> None:
    lines = [begun(1), *(reported(1, step, step / 100) for step in (10, 20, 30)), begun(1), reported(1, 20, 0.7)]
    assert replay(lines)[1].reports == [(10, 0.1), (20, 0.7)]


def test_what_was_copied_from_whom_is_told(root: StorageRoot) -> None:
    journal = Journal(root, 7)
    journal.begin(1, 8, {"lr": 0.5}, "a")
    journal.begin(2, 9, {"lr": 0.1}, "b")
    journal.report(2, 40, 0.1)
    clone = Clone(donor=1, checkpoint="8/step-00000030", step=30, job_id=10)
    journal.clone(2, clone, {"lr": 0.6}, "b")
    journal.report(2, 40, 0.4)
    journal.begin(2, 10, {"lr": 0.6}, "c")
    journal.flush()
    trial = read_trials(root, 7)[2]
    assert (trial.job_ids, trial.clones, trial.parameters) == ([9, 10], [clone], {"lr": 0.6})
    assert trial.reports == [(40, 0.4)]


def test_a_stopped_trial_goes_on_and_an_early_one_does_not() -> None:
    trials = replay([begun(1), ended(1, "stopped"), begun(2), ended(2, "early"), begun(3), ended(3, "failed")])
    assert [trial.is_final for trial in trials.values()] == [False, True, True]
    assert replay([begun(1), ended(1, "stopped"), begun(1)])[1].status == "running"


def test_lines_that_are_damaged_or_of_a_later_version_are_left_out() -> None:
    lines = [b"{", b"[]", b'{"kind": "begin"}', reported(9, 1, 0.1), begun(1), b'{"kind": "new", "trial": 1}', b""]
    assert list(replay(lines)) == [1]


@pytest.mark.parametrize(("mode", "order"), [("max", [2, 1, 3, 4]), ("min", [3, 1, 2, 4])])
def test_the_best_comes_first_and_nan_last(mode: str, order: list[int]) -> None:
    values = {1: 0.5, 2: 0.9, 3: 0.1, 4: math.nan}
    trials = [Trial(number, {}, 0.0, reports=[(1, value)]) for number, value in values.items()]
    assert [trial.number for trial in rank_trials(trials, mode)] == order
    best = find_best(trials, mode)
    assert best is not None
    assert best.number == order[0]
    assert find_best(trials[3:], mode) is None


def test_of_equals_the_first_is_the_best() -> None:
    trials = [Trial(number, {}, 0.0, reports=[(1, 0.5)]) for number in (3, 1, 2)]
    assert [trial.number for trial in rank_trials(trials, "max")] == [1, 2, 3]


def test_the_time_of_a_trial_is_that_in_which_it_ran() -> None:
    def at(time_unix_s: float, kind: str, **given: Any) -> bytes:
        return json.dumps({"kind": kind, "trial": 1, "time": time_unix_s, **given}).encode()

    # It waits for room, its driver dies, it is stopped, and goes on a day later.
    first = [begun(1), at(30, "start"), at(50, "report", step=1, value=1)]
    again = [begun(1, time=100), at(130, "start"), at(150, "end", status="stopped")]
    later = [begun(1, time=90_000), at(90_020, "start"), at(90_045, "end", status="success")]
    trial = replay([*first, *again, *later])[1]
    assert (trial.began_unix_s, trial.ended_unix_s, trial.duration_s) == (30, 90_045, 20 + 20 + 25)
    # Of a driver that told of no start, the beginning counts.
    assert replay([begun(1), at(25, "end", status="success")])[1].duration_s == 15
    assert replay([*first, *again])[1].duration_s == 40
    assert replay(first)[1].duration_s > 1e6
