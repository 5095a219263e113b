"""TensorBoard's files while the disk is full, and numbers that they have no room for."""

from __future__ import annotations

import errno
import importlib
from collections.abc import Callable
from typing import Any

import pytest
from support.local_faults import LocalFaults
from tensorboard.backend.event_processing.directory_watcher import DirectoryWatcher
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from periflow_ray.jobs import tensorboard as tensorboard_module
from periflow_ray.jobs.metrics import Metric, read_metrics
from periflow_ray.jobs.tensorboard import TensorBoardWriter
from periflow_ray.runtime.monitor.recorder import Recorder
from periflow_ray.runtime.monitor.sinks.stored import StoredSink
from periflow_ray.runtime.monitor.sinks.tensorboard import TensorBoardSink
from periflow_ray.store.root import StorageRoot


@pytest.fixture(autouse=True)
def _imported() -> None:
    importlib.import_module("tensorboardX")  # Which may take longer than the end of a job waits for.


@pytest.fixture
def problems() -> list[str]:
    """What was told to the user."""
    return []


def read_scalars(root: StorageRoot) -> dict[str, dict[int, float]]:
    """Name -> step -> value, as TensorBoard reads the job's directory."""
    scalars: dict[str, dict[int, float]] = {}
    directory = str(root.local_path("jobs/1/tensorboard"))
    for event in DirectoryWatcher(directory, EventFileLoader, lambda path: "tfevents" in path).Load():
        for value in event.summary.value:
            scalars.setdefault(value.tag, {})[event.step] = value.tensor.float_val[0]
    return scalars


def metric(step: int, **values: Any) -> Metric:
    return Metric(step, 0, 0, 100.0 + step, values)


def test_large_integers_are_floats_and_what_is_larger_than_those_is_left_out(
    local_root: StorageRoot, problems: list[str]
) -> None:
    sinks = [StoredSink(local_root, 1), TensorBoardSink(TensorBoardWriter(local_root, 1), problems.append)]
    recorder = Recorder(local_root, 1, sinks, problems.append)
    for step, flops in enumerate((1, 2**64, 10**400, 5), 1):
        recorder.record(step, None, [metric(step, flops=flops, loss=0.5)])
        recorder.try_flush()
    recorder.close()
    assert read_scalars(local_root) == {
        "flops": {1: 1.0, 2: float(2**64), 4: 5.0},
        "loss": dict.fromkeys(range(1, 5), 0.5),
    }
    assert [stored.step for stored in read_metrics(local_root, 1)] == [1, 2, 3, 4]
    assert problems == []


@pytest.mark.parametrize("position", range(1, 7))
@pytest.mark.parametrize("fault", ["no_space", "cut"])
def test_a_disk_that_is_full_for_a_moment_costs_no_scalar(
    fault: Any, position: int, local_root: StorageRoot, problems: list[str], wait_until: Callable[..., None]
) -> None:
    faults = LocalFaults(local_root.local_path("jobs/1/tensorboard"))
    sink = TensorBoardSink(TensorBoardWriter(local_root, 1), problems.append, retry_delays_s=(0.0, 0.0))
    with faults.in_force():
        faults.plan(fault, position)
        for step in (1, 2, 3):
            sink.record([metric(step, loss=step)])
        sink.close()
    assert read_scalars(local_root) == {"loss": {1: 1.0, 2: 2.0, 3: 3.0}}
    assert problems == []


def test_a_disk_that_stays_full_is_told_once_and_holds_nothing_up(
    local_root: StorageRoot, problems: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = tensorboard_module._EventFile.flush
    is_full = True

    def flush_when_not_full(file: Any) -> None:
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(file)

    monkeypatch.setattr(tensorboard_module._EventFile, "flush", flush_when_not_full)
    tensorboard = TensorBoardSink(TensorBoardWriter(local_root, 1), problems.append, retry_delays_s=())
    recorder = Recorder(local_root, 1, [tensorboard, StoredSink(local_root, 1)], problems.append)
    for step in range(1, 400):
        recorder.record(step, 400, [metric(step, **{f"name-{number}": 1.0 for number in range(20)})])
        recorder.try_flush()
    assert len(read_metrics(local_root, 1)) == 399
    is_full = False
    recorder.close()
    assert problems == [
        "not everything reaches TensorBoard: its files cannot be written (No space left on device). The job goes on "
        "without it."
    ]
    assert len(list(local_root.local_path("jobs/1/tensorboard").iterdir())) <= 1


def test_a_library_that_fails_is_given_up_with_one_word(
    local_root: StorageRoot, problems: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise AttributeError("another version")

    monkeypatch.setattr(tensorboard_module._EventFile, "write_scalar", fail)
    sink = TensorBoardSink(TensorBoardWriter(local_root, 1), problems.append)
    for step in (1, 2, 3):
        sink.record([metric(step, loss=1.0)])
    sink.close()
    assert problems == ["not everything reaches TensorBoard: AttributeError. The job goes on without it."]


def test_metrics_whose_storing_fails_reach_tensorboard_all_the_same(
    local_root: StorageRoot, problems: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stored = StoredSink(local_root, 1)
    recorder = Recorder(
        local_root, 1, [stored, TensorBoardSink(TensorBoardWriter(local_root, 1), problems.append)], problems.append
    )
    recorder.record(1, None, [metric(1, loss=1.0)])
    recorder.try_flush()
    with monkeypatch.context() as patch:
        patch.setattr(local_root, "local_path", lambda key: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        recorder.record(2, None, [metric(2, loss=2.0)])
        recorder.try_flush()
    recorder.close()
    assert [row.step for row in read_metrics(local_root, 1)] == [1, 2]
    assert read_scalars(local_root) == {"loss": {1: 1.0, 2: 2.0}}
    assert "metrics are delayed" in capfd.readouterr().err
    assert problems == []
