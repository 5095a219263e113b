"""The trials of ``bench_figures.sweep`` as Ray's documentation has them: Ray Tune over a TorchTrainer each.

python tune_over_train.py DIRECTORY NUM_TRIALS
"""

from __future__ import annotations

import sys
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback


def train(config: dict[str, Any]) -> None:
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=config["lr"])
    for step in range(1, 601):
        batch = torch.randint(1500, (64,))
        loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # Each report takes as long as Ray Train polls its workers; ours reports thirty times.
        if step % 200 == 0:
            ray.train.report({"accuracy": float((network(images[1500:]).argmax(1) == labels[1500:]).float().mean())})


def run_trial(config: dict[str, Any], directory: str) -> None:
    trainer = ray.train.torch.TorchTrainer(
        train,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            storage_path=directory,
            name=f"train-{tune.get_context().get_trial_id()}",
            callbacks=[TuneReportCallback()],
        ),
    )
    trainer.fit()


def main() -> None:
    directory, num_trials = sys.argv[1], int(sys.argv[2])
    # Two workers, and the trials that wait for them, which do nothing else.
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, directory=directory), {"CPU": 0.5}),
        param_space={"lr": tune.loguniform(0.001, 1)},
        tune_config=tune.TuneConfig(num_samples=num_trials, max_concurrent_trials=2),
        run_config=tune.RunConfig(storage_path=directory, name="tune"),
    )
    results = tuner.fit()
    assert not results.errors, results.errors


if __name__ == "__main__":
    main()
