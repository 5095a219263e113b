"""A sweep over a function: which learning rate and which batch size train the network of ``main.py`` best.

    python search.py

Each trial is a job of its own; ASHA stops those that are behind.
"""

from __future__ import annotations

import argparse

from main import train_loop_per_worker
from ray import tune

import periflow_ray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-trials", type=int, default=8)
    args = parser.parse_args()
    trainer = periflow_ray.TorchTrainer(
        train_loop_per_worker,
        # What the search does not vary.
        train_loop_config={"num_epochs": 5, "seed": 0},
        name="digits",
        max_failures=3,
    )
    results = periflow_ray.sweep(
        trainer,
        {"learning_rate": tune.loguniform(1e-4, 1e-1), "batch_size": tune.choice([16, 32, 64])},
        metric="accuracy",
        mode="max",
        num_trials=args.num_trials,
        max_concurrent=2,
        scheduler={"type": "asha", "max_t": 500, "grace_period": 50, "reduction_factor": 3},
    )
    best = results.get_best_result(scope="all")
    print(f"best: job {best.metrics['job_id']} with {best.config}")
    print(f"checkpoint: {best.checkpoint}")


if __name__ == "__main__":
    main()
