"""Jobs in TensorBoard, read back with TensorBoard's own reader."""

from __future__ import annotations

import pytest
from support.sample_jobs import build_record
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from periflow_ray.cli.job_tensorboard import fill_log_dir
from periflow_ray.jobs import write_record
from periflow_ray.jobs.metrics import read_metrics
from periflow_ray.jobs.tensorboard import TensorBoardWriter


@pytest.fixture
def recorded_root(sample_root):
    """Job 1's metrics are in TensorBoard's files, as a running job of a folder writes them."""
    writer = TensorBoardWriter(sample_root, 1)
    writer.append(read_metrics(sample_root, 1))
    writer.close()
    return sample_root


def read_losses(path) -> list[float]:
    events = EventAccumulator(str(path))
    events.Reload()
    return [round(scalar.value, 6) for scalar in events.Scalars("loss")]


LOSSES = [round(5 / step, 6) for step in range(1, 21)]


def test_a_job_has_its_number_and_name(run_cli, recorded_root, tmp_path):
    result = run_cli("job", "tensorboard", "cifar-job", "--logdir", str(tmp_path / "runs"))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith(f"Wrote 1-cifar-job to {tmp_path}/runs. Show them: tensorboard --logdir ")
    assert read_losses(tmp_path / "runs" / "1-cifar-job") == pytest.approx(LOSSES, abs=1e-5)


def test_without_a_job_those_with_metrics_are_shown_and_again_is_no_error(run_cli, recorded_root, tmp_path):
    for _ in range(2):
        assert run_cli("job", "tensorboard", "--logdir", str(tmp_path / "runs")).exit_code == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["1-cifar-job"]


def test_what_is_in_a_bucket_is_copied(sample_root, tmp_path, monkeypatch):
    # The same documents, read as those of a bucket are.
    monkeypatch.setattr(type(sample_root), "is_local", property(lambda root: root.uri != sample_root.uri))
    write_record(sample_root, build_record(1, name="a/b"))

    assert fill_log_dir(sample_root, [build_record(1, name="a/b"), build_record(2)], tmp_path / "runs") == ["1-a_b"]
    assert read_losses(tmp_path / "runs" / "1-a_b") == pytest.approx(LOSSES, abs=1e-5)


def test_without_metrics_it_says_where_they_come_from(run_cli, sample_root, tmp_path):
    result = run_cli("job", "tensorboard", "2", "--logdir", str(tmp_path / "runs"))
    assert result.exit_code == 2
    assert "pf.metric" in result.stderr
