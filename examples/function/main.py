"""A job from Python, without a template: train a small network on handwritten digits in plain PyTorch.

    python main.py --num-devices 2

``train_loop_per_worker`` runs once on every device of the cluster, inside a Ray Train worker.
"""

from __future__ import annotations

import argparse
import itertools
import os
from pathlib import Path
from typing import Any

import periflow_ray


def train_loop_per_worker(config: dict[str, Any]) -> None:
    # Imported here, because this function travels to the workers: what it uses must be inside it.
    import ray.train
    import ray.train.torch
    import torch
    import torch.distributed as dist
    from sklearn.datasets import load_digits
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

    import periflow_ray as pf

    rank, world_size = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    device = ray.train.torch.get_device()
    pixels, digits = load_digits(return_X_y=True)
    dataset = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits))
    sampler = DistributedSampler(dataset, num_replicas=world_size, rank=rank, seed=config["seed"], drop_last=True)
    loader = DataLoader(dataset, config["batch_size"], sampler=sampler, drop_last=True, generator=torch.Generator())

    torch.manual_seed(config["seed"])
    network = torch.nn.Sequential(
        torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(64, 10)
    )
    model = ray.train.torch.prepare_model(network)  # Moves it to the device and wraps it in DDP.
    plain_model = model.module if hasattr(model, "module") else model
    optimizer = torch.optim.Adam(model.parameters(), lr=config["learning_rate"])
    torch.manual_seed(config["seed"] + rank)  # Dropout of its own on every rank.

    checkpoint_path = Path(os.environ["CKPT_DIR"]) / "checkpoint.pt"

    def save(step: int) -> None:
        """Collective: call on all ranks."""
        rng_states: list[Any] = [torch.get_rng_state()]
        if world_size > 1:
            rng_states = [None] * world_size
            dist.all_gather_object(rng_states, torch.get_rng_state())
        if ray.train.get_context().get_local_rank() == 0:
            state = {
                "step": step,
                "model": plain_model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "rng": rng_states,
            }
            checkpoint_path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, checkpoint_path.with_suffix(".part"))
            checkpoint_path.with_suffix(".part").replace(checkpoint_path)  # Never half written.
        pf.upload_checkpoint()

    step = 0
    if checkpoint_path.is_file():  # The newest one is here again when the job was restarted.
        state = torch.load(checkpoint_path, map_location="cpu")
        step = state["step"]
        plain_model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if len(state["rng"]) == world_size:
            torch.set_rng_state(state["rng"][rank])
    total_steps = config["num_epochs"] * len(loader)
    if step >= total_steps:
        pf.init()
        return

    pf.init(total_train_steps=total_steps)
    first_epoch, num_batches_done = divmod(step, len(loader))
    for epoch in range(first_epoch, config["num_epochs"]):
        sampler.set_epoch(epoch)
        for inputs, labels in itertools.islice(loader, num_batches_done, None):
            with pf.train_step():
                logits = model(inputs.to(device))
                loss = torch.nn.functional.cross_entropy(logits, labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            step += 1
            if step % 10 == 0:
                accuracy = (logits.argmax(dim=1) == labels.to(device)).float().mean()
                pf.metric({"loss": loss.item(), "accuracy": accuracy.item()})
            if pf.is_emergency_save():
                save(step)
        num_batches_done = 0
        if rank == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}", flush=True)
        save(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-devices", type=int, default=2)
    parser.add_argument("--num-epochs", type=int, default=5)
    args = parser.parse_args()
    trainer = periflow_ray.TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"num_epochs": args.num_epochs, "batch_size": 32, "learning_rate": 1e-2, "seed": 0},
        num_devices=args.num_devices,
        name="digits",
        max_failures=3,
    )
    result = trainer.fit()
    print(f"checkpoint: {result.checkpoint}")


if __name__ == "__main__":
    main()
