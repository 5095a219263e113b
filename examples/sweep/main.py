"""Train a small network on scikit-learn's handwritten digits, with the hyperparameters of the command line."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import periflow_ray as pf

NUM_TRAINING_IMAGES = 1500


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    network = nn.Sequential(nn.Linear(64, args.width), nn.ReLU(), nn.Dropout(args.dropout), nn.Linear(args.width, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=args.lr, momentum=args.momentum)
    step = 0
    if args.checkpoint.is_file():  # It is back here when the trial starts again.
        saved = torch.load(args.checkpoint)
        step = saved["step"]
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        # Those of the command line hold: the checkpoint may be of another trial.
        optimizer.param_groups[0].update(lr=args.lr, momentum=args.momentum)
        torch.set_rng_state(saved["rng"])

    pf.init(total_train_steps=args.total_steps)
    while step < args.total_steps:
        with pf.train_step():
            batch = torch.randint(NUM_TRAINING_IMAGES, (64,))
            loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        step += 1
        if step % args.test_interval == 0:
            pf.metric({"loss": loss.item(), "accuracy": measure_accuracy(network, images, labels)})
        if step % args.save_interval == 0 or pf.is_emergency_save():
            save(args.checkpoint, step, network, optimizer)
            pf.upload_checkpoint()
    print(f"finished at step {step}: accuracy {measure_accuracy(network, images, labels):.1%}")


def measure_accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images named rightly, of those that it is not trained on."""
    network.eval()
    with torch.no_grad():
        guesses = network(images[NUM_TRAINING_IMAGES:]).argmax(dim=1)
    network.train()
    return (guesses == labels[NUM_TRAINING_IMAGES:]).float().mean().item()


def save(path: Path, step: int, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "step": step,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
    }
    torch.save(state, path)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=0.0)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--total-steps", type=int, default=600)
    parser.add_argument("--test-interval", type=int, default=20)
    parser.add_argument("--save-interval", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, default=Path(os.environ.get("CKPT_DIR", "ckpt")) / "checkpoint.pt")
    return parser.parse_args()


if __name__ == "__main__":
    main()
