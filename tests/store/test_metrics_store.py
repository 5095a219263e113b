from __future__ import annotations

import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from periflow_ray.errors import NewerFormatError
from periflow_ray.jobs import JobProgress, read_progress, write_progress
from periflow_ray.jobs.metrics import Metric, MetricsWriter, read_metrics
from periflow_ray.jobs.tensorboard import TensorBoardWriter
from periflow_ray.store.segments import read_lines

METRICS = [
    Metric(1, 0, 0, 100.5, {"loss": 2.5, "phase": "train"}),
    Metric(1, 1, 1, 100.625, {"loss": 2.75}),
    Metric(2, 0, 0, 101.25, {"loss": 1.5, "lr": 0.001}),
]


def test_metrics_read_back_for_rank_0_one_rank_or_all(root):
    writer = MetricsWriter(root, 1)
    writer.append(METRICS)
    assert read_metrics(root, 1) == []
    writer.flush()
    assert read_metrics(root, 1) == [METRICS[0], METRICS[2]]
    assert read_metrics(root, 1, rank=1) == [METRICS[1]]
    assert read_metrics(root, 1, rank=None) == METRICS
    assert read_metrics(root, 2) == []


def test_steps_that_were_repeated_after_a_restart_appear_as_often_as_they_were_run(root):
    for time_unix_s in (100.0, 200.0):
        writer = MetricsWriter(root, 1)
        writer.append([Metric(5, 0, 0, time_unix_s, {"loss": 1.0})])
        writer.flush()
    assert [metric.time_unix_s for metric in read_metrics(root, 1)] == [100.0, 200.0]


@pytest.mark.parametrize(
    "spoiled",
    [
        b'[2,0,0,1.5,{"lo',
        b'[2,0,0,1.5,{"lo\n',
        b"[2,0,0,1.5]\n",
        b"[2,0,0,1.5,null]\n",
        b"7\n",
        b"{}\n",
        b"\xff\n",
        b"\n",
    ],
)
def test_a_damaged_line_spoils_that_line_only(root, spoiled):
    root.write_bytes("jobs/1/metrics/00000000", b'[1,0,0,100.5,{"loss":2.5,"phase":"train"},"later"]\n' + spoiled)
    writer = MetricsWriter(root, 1)
    writer.append(METRICS[1:])
    writer.flush()
    assert read_metrics(root, 1, rank=None) == METRICS


def test_metrics_of_a_newer_format_are_refused_with_their_key(root):
    root.write_bytes("jobs/1/metrics/00000000", b'{"format":2,"at":[1,0,0]}\n')
    with pytest.raises(NewerFormatError, match=r"^'jobs/1/metrics' in storage root .* has format 2, "):
        read_metrics(root, 1)


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_values_that_are_not_finite_survive_and_are_json(root):
    writer = MetricsWriter(root, 1)
    writer.append([Metric(1, 0, 0, 1.0, {"a": math.inf, "b": -math.inf, "c": math.nan, "d": None})])
    writer.flush()
    (line,) = read_lines(root, "jobs/1/metrics")
    assert json.loads(line, parse_constant=refuse)[4] == {"a": "Infinity", "b": "-Infinity", "c": "NaN", "d": None}
    values = read_metrics(root, 1)[0].values
    assert (values["a"], values["b"], math.isnan(values["c"]), values["d"]) == (math.inf, -math.inf, True, None)


def test_tensorboard_reads_rank_0s_numbers(local_root):
    writer = TensorBoardWriter(local_root, 1)
    writer.append([*METRICS, Metric(3, 0, 0, 102.0, {"loss": 1, "done": True, "note": "end"})])
    writer.flush()
    writer.close()
    events = EventAccumulator(str(local_root.local_path("jobs/1/tensorboard")))
    events.Reload()
    scalars = {
        name: [(event.step, event.value, event.wall_time) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    assert scalars == {
        "loss": [(1, 2.5, 100.5), (2, 1.5, 101.25), (3, 1.0, 102.0)],
        "lr": [(2, 0.0010000000474974513, 101.25)],
    }


def test_a_job_without_metrics_has_no_event_file(local_root):
    writer = TensorBoardWriter(local_root, 1)
    writer.append([METRICS[1]])
    writer.flush()
    writer.close()
    assert local_root.list_names("jobs/1") == []


def test_documents_with_metrics_are_json_whatever_the_values_are(root):
    write_progress(root, 1, JobProgress(step=1, metrics={"loss": math.nan, "best": -math.inf, "text": "none"}))
    stored = json.loads(root.read_bytes("jobs/1/progress.json"), parse_constant=refuse)
    assert stored["metrics"] == {"loss": "NaN", "best": "-Infinity", "text": "none"}
    metrics = read_progress(root, 1).metrics
    assert (math.isnan(metrics["loss"]), metrics["best"], metrics["text"]) == (True, -math.inf, "none")
    # As earlier versions stored it.
    root.write_bytes("jobs/2/progress.json", b'{"step":1,"metrics":{"loss":NaN}}')
    assert math.isnan(read_progress(root, 2).metrics["loss"])


def test_tensorboard_compares_trials_by_their_hyperparameters(local_root):
    writer = TensorBoardWriter(local_root, 1, {"lr": 0.5, "optimizer": "sgd", "nesterov": True}, "accuracy")
    writer.append([Metric(3, 0, 0, 1000.0, {"accuracy": 0.75})])
    writer.flush()
    writer.close()
    events = EventAccumulator(str(local_root.local_path("jobs/1/tensorboard")))
    events.Reload()
    assert [event.value for event in events.Scalars("accuracy")] == [0.75]
    contents = events.PluginTagToContent("hparams")
    session = metadata.parse_session_start_info_plugin_data(contents["_hparams_/session_start_info"])
    assert session.hparams["lr"].number_value == 0.5
    assert (session.hparams["optimizer"].string_value, session.hparams["nesterov"].bool_value) == ("sgd", True)
    experiment = metadata.parse_experiment_plugin_data(contents["_hparams_/experiment"])
    assert [info.name.tag for info in experiment.metric_infos] == ["accuracy"]
