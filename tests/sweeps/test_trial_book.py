"""What the driver of a sweep writes down: killed between any two writes, or with a storage that refuses one of them.

Long because all of it goes on with one small sweep.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from support.sample_jobs import build_record

from periflow_ray.errors import StorageError
from periflow_ray.jobs import (
    JobProgress,
    JobState,
    claim_job_id,
    read_written_state,
    write_progress,
    write_record,
    write_state,
)
from periflow_ray.jobs.metrics import Metric, MetricsWriter
from periflow_ray.plan import build_plan, local_vm
from periflow_ray.plan.relocate import move_plan
from periflow_ray.plan.trial import plan_trial
from periflow_ray.runtime.sweeps import trial_book
from periflow_ray.runtime.sweeps.trial_book import TrialBook
from periflow_ray.spec import SweepSpec, load_template
from periflow_ray.store import patience
from periflow_ray.store.checkpoints import Manifest, StoredFile, commit, find_checkpoint, list_committed
from periflow_ray.store.checkpoints.pins import read_pins
from periflow_ray.store.keys import job_key
from periflow_ray.store.patience import Patience
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.segments import read_lines, segment_key
from periflow_ray.sweeps.documents import read_place, write_sweep
from periflow_ray.sweeps.journal import read_trials
from periflow_ray.sweeps.trials import take_up_trial

SWEEP_ID = 1
TEMPLATE = """\
name: book
vm: local
num_devices: 1
job_setting: {type: custom, docker: {command: python main.py $x}}
checkpoint: {output_checkpoint_dir: /workspace/ckpt}
"""
PLAN = build_plan(load_template(TEMPLATE).spec, local_vm(num_gpus=0), storage_uri="/storage", num_local_cpus=2)
SPEC = SweepSpec.model_validate(
    {
        "metric": "loss",
        "mode": "min",
        "num_trials": 3,
        "parameters": {"x": {"uniform": [0, 10]}},
        "scheduler": {"type": "pbt", "perturbation_interval": 10},
    }
)
RECORD = build_record(SWEEP_ID, name="book", experiment=None)


class Killed(BaseException):
    """The process is gone."""


class FaultyRoot(StorageRoot):
    """Counts the writes, and raises at those that a test says."""

    def __init__(self, uri: str, fails: Callable[[int], BaseException | None] = lambda index: None) -> None:
        super().__init__(uri)
        self.num_writes = 0
        self._fails = fails

    def _count(self) -> None:
        self.num_writes += 1
        error = self._fails(self.num_writes)
        if error is not None:
            raise error

    def write_bytes(self, key: str, content: bytes) -> None:
        self._count()
        super().write_bytes(key, content)

    def create_exclusive(self, key: str, content: bytes) -> bool:
        self._count()
        return super().create_exclusive(key, content)

    def delete(self, prefix: str) -> None:
        self._count()
        super().delete(prefix)


@pytest.fixture
def new_uri() -> Iterator[Callable[[], str]]:
    """Makes a storage root with a sweep that has not begun; returns its URI."""
    numbers = itertools.count()

    def make() -> str:
        uri = f"memory://books/{next(numbers)}"
        root = StorageRoot(uri)
        assert claim_job_id(root) == SWEEP_ID
        write_record(root, RECORD)
        return uri

    yield make
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


def open_book(root: StorageRoot) -> TrialBook:
    return TrialBook(root, PLAN, RECORD, SPEC, Patience(lambda text: None), lambda text: None)


def save(root: StorageRoot, job_id: int, step: int) -> None:
    """What a trial's agent does: its job runs, and commits a checkpoint."""
    write_state(root, job_id, JobState("running", attempt=1))
    files = (StoredFile("a", 0, "", 0, "files/a"),)
    commit(root, Manifest(f"step-{step:08d}", job_id, step, 1, 1, 1, float(step), files))


def drive(root: StorageRoot, agents: StorageRoot, driver: str) -> None:
    """Go on with the sweep, from wherever it is, to its end: three trials, and the third one goes on from the first."""
    book = open_book(root)
    book.settle_pins()
    live = {}
    for number in (1, 2, 3):
        trial = book.trials.get(number)
        if trial is not None and trial.is_final:
            continue
        live[number] = tune_id = f"{driver}-{number}"
        book.begin(number, {"x": float(number)} if trial is None else trial.parameters, tune_id)
        check_start(agents, book, tune_id)
        save(agents, book.trials[number].job_ids[-1], 10)
        book.report(tune_id, 10, number / 10)
        book.flush()
    if {1, 3} <= live.keys() and not book.trials[3].clones:
        source = book.find_source(live[1])
        if source is not None:
            book.clone(live[3], live[1], source, {"x": 1.2})
            check_start(agents, book, live[3])
            book.report(live[3], 20, 0.05)
    for tune_id in live.values():
        book.end(tune_id, "success", None)
    book.flush()
    book.settle_pins(is_over=True)


def check_start(agents: StorageRoot, book: TrialBook, tune_id: str) -> None:
    """An agent finds the job that the book says, with the parameters and the start that it says."""
    trial = book.trial_of(tune_id)
    place = read_place(agents, SWEEP_ID, tune_id)
    assert (place.number, place.job_id) == (trial.number, trial.job_ids[-1])
    # One that has run is not made anew.
    assert read_written_state(agents, place.job_id).attempt == len(list_committed(agents, place.job_id))
    plan, record = take_up_trial(agents, place.job_id)
    assert (plan.hparams, record.sweep, record.trial) == (trial.parameters, SWEEP_ID, trial.number)
    assert plan.start_from == (trial.clones[-1].checkpoint if trial.clones else None)
    for clone in trial.clones[-1:]:
        source_job, _, name = clone.checkpoint.partition("/")
        assert name in read_pins(agents, int(source_job))


def assert_sound(root: StorageRoot) -> None:
    """Three trials, each ended once; no job that is none of theirs; a lineage that holds; no pin."""
    trials = read_trials(root, SWEEP_ID)
    assert sorted(trials) == [1, 2, 3]
    events = [json.loads(line) for line in read_lines(root, job_key(SWEEP_ID, "journal"))]
    assert Counter(event["trial"] for event in events if event["kind"] == "end") == {1: 1, 2: 1, 3: 1}
    job_ids = [job_id for trial in trials.values() for job_id in trial.job_ids]
    assert len(set(job_ids)) == len(job_ids)
    names = [int(name) for name in root.list_names("jobs")]
    made = [job_id for job_id in names if root.list_names(job_key(job_id)) != ["claim"]]
    assert sorted(made) == sorted([SWEEP_ID, *job_ids])
    for trial in trials.values():
        assert trial.status == "success"
        assert [clone.job_id for clone in trial.clones] == trial.job_ids[1:]
        for clone in trial.clones:
            assert find_checkpoint(root, clone.checkpoint).job_id in trials[clone.donor].job_ids
    assert all(read_pins(root, job_id) == frozenset() for job_id in names)


def test_a_driver_that_is_killed_between_any_two_writes_is_gone_on_from(new_uri: Callable[[], str]) -> None:
    counted = FaultyRoot(new_uri())
    drive(counted, StorageRoot(counted.uri), "first")
    assert_sound(counted)
    assert len(read_trials(counted, SWEEP_ID)[3].clones) == 1
    num_writes = counted.num_writes
    assert num_writes > 25
    for index in range(1, num_writes + 1):
        uri = new_uri()
        agents = StorageRoot(uri)
        # The second driver is killed as well, a little later.
        for driver, at in (("first", index), ("second", index // 2 + 1), ("third", 0)):
            try:
                drive(FaultyRoot(uri, lambda n, at=at: Killed() if n == at else None), agents, driver)
            except Killed:
                continue
            break
        assert_sound(agents)


@pytest.mark.parametrize("takes_it", [False, True], ids=["refused", "answer lost"])
def test_a_storage_that_refuses_any_write_for_a_while_changes_nothing(
    new_uri: Callable[[], str], monkeypatch: pytest.MonkeyPatch, takes_it: bool
) -> None:
    monkeypatch.setattr(patience, "RETRY_INTERVAL_S", 0.0)

    class AnswerLost(FaultyRoot):
        def write_bytes(self, key: str, content: bytes) -> None:
            StorageRoot.write_bytes(self, key, content)
            self._count()

    kind = AnswerLost if takes_it else FaultyRoot
    counted = kind(new_uri())
    drive(counted, StorageRoot(counted.uri), "first")
    undisturbed = {number: trial.job_ids for number, trial in read_trials(counted, SWEEP_ID).items()}
    for index in range(1, counted.num_writes + 1):
        away = range(index, index + 4)
        root = kind(new_uri(), lambda n, away=away: StorageError("it is away") if n in away else None)
        try:
            drive(root, StorageRoot(root.uri), "first")
        except StorageError:
            # What the driver does at its end with patience, it does here without.
            drive(kind(root.uri), StorageRoot(root.uri), "second")
        assert_sound(root)
        trials = read_trials(root, SWEEP_ID)
        if trials[3].clones:
            assert {number: len(trial.job_ids) for number, trial in trials.items()} == {
                number: len(job_ids) for number, job_ids in undisturbed.items()
            }


def test_a_line_that_was_torn_costs_no_more_than_itself(tmp_path: Path) -> None:
    root = StorageRoot(str(tmp_path / "storage"))
    assert claim_job_id(root) == SWEEP_ID
    write_record(root, RECORD)
    book = open_book(root)
    for number in (1, 2):
        book.begin(number, {"x": float(number)}, f"first-{number}")
    book.end("first-1", "success", None)
    path = root.local_path(segment_key(job_key(SWEEP_ID, "journal"), 0))
    whole = path.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for size in range(start, len(whole)):
        path.write_bytes(whole[:size])
        assert [trial.status for trial in read_trials(root, SWEEP_ID).values()] == ["running", "running"]
    drive(root, root, "second")
    assert_sound(root)


def test_what_the_trials_job_recorded_is_in_the_journal_when_it_goes_on(new_uri: Callable[[], str]) -> None:
    root = StorageRoot(new_uri())
    book = open_book(root)
    book.begin(1, {"x": 1.0}, "first-1")
    book.report("first-1", 10, 0.5)
    book.flush()
    # The driver is killed before it hears of more than that.
    metrics = MetricsWriter(root, book.trials[1].job_ids[0])
    for step, values in ((10, {"loss": 0.5}), (20, {"loss": 0.25}), (25, {"other": 1}), (30, {"loss": "a"})):
        metrics.append([Metric(step, 0, 0, 0.0, values)])
    metrics.flush()
    book = open_book(root)
    book.begin(1, {"x": 1.0}, "second-1")
    book.flush()
    assert book.trials[1].reports[:2] == [(10, 0.5), (20, 0.25)]
    again = read_trials(root, SWEEP_ID)[1]
    assert ([step for step, _ in again.reports], again.best("min")) == ([10, 20, 30], 0.25)


def test_of_two_drivers_the_one_that_was_overtaken_writes_nothing_more(
    new_uri: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = StorageRoot(new_uri())
    first = open_book(root)
    first.begin(1, {"x": 1.0}, "first-1")

    def leave(job_id: int) -> None:
        raise Killed(job_id)

    monkeypatch.setattr(trial_book, "leave_to_successor", leave)
    record = dataclasses.replace(RECORD, resumed_unix_s=2e9)
    write_record(root, record)
    second = TrialBook(root, PLAN, record, SPEC, Patience(print), print)
    second.begin(1, {"x": 1.0}, "second-1")
    first.report("first-1", 10, 0.5)
    for act in (first.flush, lambda: first.begin(2, {"x": 2.0}, "first-2"), lambda: first.end("first-1", "failed", "")):
        with pytest.raises(Killed):
            act()
    second.begin(2, {"x": 2.0}, "second-2")
    trials = read_trials(root, SWEEP_ID)
    assert {number: (trial.status, trial.reports) for number, trial in trials.items()} == {
        1: ("running", []),
        2: ("running", []),
    }
    assert [len(trial.job_ids) for trial in trials.values()] == [1, 1]


def test_of_two_agents_of_a_trial_that_has_not_begun_only_the_later_one_may_write(new_uri: Callable[[], str]) -> None:
    root = StorageRoot(new_uri())
    book = open_book(root)
    book.begin(1, {"x": 1.0}, "first-1")
    (job_id,) = book.trials[1].job_ids
    records = [take_up_trial(root, job_id)[1] for _ in range(2)]
    assert records[0] != records[1]
    write_state(root, job_id, JobState("running", attempt=1))
    assert take_up_trial(root, job_id)[1] != records[1]


def test_nothing_goes_on_from_a_last_step_or_from_a_checkpoint_that_is_deleted_meanwhile(
    new_uri: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = StorageRoot(new_uri())
    book = open_book(root)
    book.begin(1, {"x": 1.0}, "a")
    (job_id,) = book.trials[1].job_ids
    assert book.find_source("a") is None
    save(root, job_id, 10)
    write_progress(root, job_id, JobProgress(10, 20))
    source = book.find_source("a")
    assert source is not None
    assert source.manifest.step == 10
    write_progress(root, job_id, JobProgress(10, 10))
    assert book.find_source("a") is None
    write_progress(root, job_id, JobProgress(10, 20))
    pin = trial_book.pin

    def pin_late(root: StorageRoot, job_id: int, checkpoint: str, by_job: int) -> None:
        root.delete(f"jobs/{job_id}/checkpoints/{checkpoint}")
        pin(root, job_id, checkpoint, by_job)

    monkeypatch.setattr(trial_book, "pin", pin_late)
    assert book.find_source("a") is None
    assert list_committed(root, job_id) == []


def test_a_trial_that_began_with_other_devices_goes_on_with_those_of_the_resumed_sweep(
    new_uri: Callable[[], str],
) -> None:
    root = StorageRoot(new_uri())
    write_sweep(root, SWEEP_ID, SPEC)
    book = open_book(root)
    book.begin(1, {"x": 1.0}, "first-1")
    (job_id,) = book.trials[1].job_ids
    write_state(root, job_id, JobState("stopped", attempt=1))
    moved = move_plan(PLAN, vm=local_vm(num_gpus=0), num_devices=2, storage_uri="/elsewhere", num_local_cpus=2)

    plan, record = take_up_trial(root, job_id, moved)
    assert (record.sweep, record.trial, record.num_devices) == (SWEEP_ID, 1, 2)
    assert plan == plan_trial(moved, sweep=SWEEP_ID, name="book-1", hparams={"x": 1.0})
    # The next one finds nothing to change.
    assert take_up_trial(root, job_id, moved)[0] == plan
