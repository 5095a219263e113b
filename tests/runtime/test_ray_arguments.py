"""Ray's own arguments of a trainer, beside those of ``periflow_ray.TorchTrainer``."""

from __future__ import annotations

from typing import Any

import pytest
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from periflow_ray import TorchTrainer
from periflow_ray.errors import UsageError
from periflow_ray.runtime.function_jobs.ray_arguments import OwnArguments, read_arguments
from periflow_ray.runtime.function_jobs.result import RankResult, describe_result
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.spec import KeepBest
from periflow_ray.store.checkpoints import CheckpointSummary
from periflow_ray.store.checkpoints.retention import choose_expired
from periflow_ray.store.root import StorageRoot

ACCURACY = KeepBest(metric="accuracy", mode="max")


def test_rays_words_are_the_jobs_own():
    callback = ray.train.UserCallback()
    read = read_arguments(
        OwnArguments(),
        ScalingConfig(num_workers=(2, 4), use_gpu=True, resources_per_worker={"CPU": 3, "GPU": 2}),
        RunConfig(
            name="mnist",
            storage_path="s3://bucket/runs",
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=3),
            callbacks=[callback],
        ),
    )
    assert (read.num_devices, read.min_devices, read.use_gpu) == (4, 2, True)
    assert read.resources_per_device == {"CPU": 3, "GPU": 2}
    assert (read.name, read.storage, read.max_failures) == ("mnist", "s3://bucket/runs", -1)
    assert (read.retention, read.score) == (Retention(3), None)
    assert read.run.callbacks == [callback]


def test_what_ray_is_not_told_is_as_the_job_has_it():
    read = read_arguments(OwnArguments())
    assert (read.num_devices, read.min_devices, read.use_gpu, read.max_failures) == (1, 1, None, 0)
    assert (read.name, read.storage, read.retention) == (None, None, Retention())
    # A configuration without a word of GPUs is one without GPUs, and its defaults contradict nothing.
    own = OwnArguments(num_devices=3, max_failures=2, name="own", storage="/root", keep_last=5)
    read = read_arguments(own, ScalingConfig(), RunConfig())
    assert (read.num_devices, read.use_gpu, read.max_failures) == (3, False, 2)
    assert (read.name, read.storage, read.retention) == ("own", "/root", Retention(5))
    # The same twice is no contradiction.
    assert read_arguments(OwnArguments(num_devices=2), ScalingConfig(num_workers=2)).num_devices == 2


def test_the_best_ones_by_a_score_stay_and_the_newest():
    config = CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="accuracy")
    read = read_arguments(OwnArguments(), None, RunConfig(checkpoint_config=config))
    assert (read.retention, read.score) == (Retention(1, ACCURACY, 2), ACCURACY)
    values = [0.1, 0.9, 0.5, float("nan"), 0.8, 0.2]
    kept = [CheckpointSummary(f"step-{step}", step, {"accuracy": value}) for step, value in enumerate(values)]
    rules = read.retention
    expired = choose_expired(kept, rules.keep_last, rules.keep_best, rules.num_best)
    assert [one.step for one in expired] == [0, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_devices": 2, "scaling_config": ScalingConfig(num_workers=4)}, "num_devices=2 and .*num_workers.*=4 con"),
        ({"max_failures": 1, "run_config": RunConfig(failure_config=FailureConfig(max_failures=2))}, "contradict"),
        ({"name": "one", "run_config": RunConfig(name="two")}, "contradict each other: give one of them"),
        ({"storage": "/one", "run_config": RunConfig(storage_path="/two")}, "storage='/one' and RunConfig"),
        ({"keep_last": 1, "run_config": RunConfig(checkpoint_config=CheckpointConfig(num_to_keep=2))}, "contradict"),
        ({"use_gpu": False, "scaling_config": ScalingConfig(use_gpu=True)}, "contradict"),
        ({"scaling_config": ScalingConfig(num_workers=0)}, "num_workers=1 runs the function on one device"),
        ({"scaling_config": {"num_workers": 2}}, "scaling_config must be a ray.train.ScalingConfig, not dict"),
        ({"run_config": RunConfig(failure_config=FailureConfig(max_preemption_failures=1))}, "are never counted"),
        ({"metadata": {"a": 1}}, "metadata has no meaning in a job: put it into train_loop_config"),
        ({"validation_config": object()}, "evaluate in the function"),
    ],
)
def test_what_has_no_meaning_or_two_is_told_when_the_trainer_is_made(options: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        TorchTrainer(print, **options)


def test_all_problems_are_told_at_once():
    with pytest.raises(UsageError) as error:
        TorchTrainer(print, name="one", run_config=RunConfig(name="two"), metadata={"a": 1})
    assert len(str(error.value).splitlines()) == 2


def test_a_result_without_a_checkpoint_has_the_metrics_of_the_last_report(tmp_path):
    root = StorageRoot(str(tmp_path))
    rays = ray.train.Result(metrics=None, checkpoint=None, error=None, path=None, return_value=RankResult(7, {"a": 1}))
    result = describe_result(rays, root, 1, None)
    assert (result.metrics, result.checkpoint, result.best_checkpoints) == ({"a": 1}, None, [])
    assert (result.metrics_dataframe, result.return_value) == (None, 7)
