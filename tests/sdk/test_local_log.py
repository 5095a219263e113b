"""The metrics file of a session outside any job."""

from __future__ import annotations

import json
import logging

from periflow_ray.sdk.channel import Hello, MetricRecord
from periflow_ray.sdk.local_channel import LocalChannel


def test_the_log_stays_where_it_was_when_the_script_changes_its_directory(session, work_dir, monkeypatch):
    session.init(local_log_name="run.log")
    (work_dir / "outputs").mkdir()
    monkeypatch.chdir(work_dir / "outputs")
    session.metric({"loss": 1})
    session.use_channel_factory(None)
    assert json.loads((work_dir / "run.log").read_text())["loss"] == 1
    assert list((work_dir / "outputs").iterdir()) == []


def test_a_log_that_cannot_be_written_is_told_once_and_costs_no_checkpoint(session, work_dir, caplog):
    log_path = work_dir / "missing" / "run.log"
    with caplog.at_level(logging.INFO):
        session.init(local_log_name=str(log_path))
        for loss in (1, 2):
            with session.train_step():
                session.metric({"loss": loss})
                session.upload_checkpoint()
        log_path.parent.mkdir()
        # Half a line, as a full disk leaves it.
        log_path.write_text('{"step": 2, "ra')
        session.metric({"loss": 3})
        session.upload_checkpoint()
        session.metric({"loss": 4})
        session.use_channel_factory(None)
    assert [record.getMessage() for record in caplog.records] == [
        f"periflow-ray: metrics cannot be written to {log_path} (No such file or directory). Training goes on without "
        "them."
    ]
    torn, *lines = log_path.read_text().splitlines()
    assert torn == '{"step": 2, "ra'
    assert [json.loads(line)["loss"] for line in lines] == [3, 4]


def test_a_rank_that_is_known_late_has_its_own_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    channel = LocalChannel(None)
    channel.open(Hello(0, 0, None, None, 1, is_guess=True), lambda step: True, lambda: 0)
    channel.greet(Hello(1, 1, 2, None, 1))
    channel.send(1, [MetricRecord(1, 1.0, {"loss": 0.5})], -1)
    (log,) = tmp_path.iterdir()
    assert log.name.endswith("_1.log")
    assert json.loads(log.read_text()) == {"step": 1, "rank": 1, "local_rank": 1, "loss": 0.5}
