"""Train an image classifier on CIFAR-10 or CIFAR-100 with DistributedDataParallel.

    torchrun --nproc_per_node 2 main.py --data-path data --save ckpt --load ckpt

Starts again exactly where the newest checkpoint in ``--load`` ended, in the middle of an epoch too.
"""

from __future__ import annotations

import argparse
import difflib
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchvision
from cifar_data import AugmentedImages, Cifar, normalize, read_cifar
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import periflow_ray as pf
from periflow_ray.resumable import ResumableDataLoader, SeededSamples, gather_rng_states, restore_rng_states

CHECKPOINT_NAME = "checkpoint.pt"


def main() -> None:
    args = parse_args()
    rank, world_size, device = join_process_group()
    if args.batch_size % world_size:
        raise SystemExit(f"--batch-size {args.batch_size} cannot be shared out evenly to {world_size} processes.")
    if args.deterministic:
        torch.use_deterministic_algorithms(True)
    train(args, rank, world_size, device)
    # Only now: PyTorch 2.13 can deadlock when a DistributedDataParallel is the last to let go of a Gloo group.
    if dist.is_initialized():
        dist.destroy_process_group()


def train(args: argparse.Namespace, rank: int, world_size: int, device: torch.device) -> None:
    cifar = read_cifar(args.data_path, args.dataset)
    loader = ResumableDataLoader(
        SeededSamples(AugmentedImages(cifar.train_images, cifar.train_labels), args.seed),
        args.batch_size // world_size,
        seed=args.seed,
        drop_last=True,
        num_workers=args.num_dataloader_workers,
        pin_memory=device.type == "cuda",
    )
    if len(loader) == 0:
        raise SystemExit(
            f"--batch-size {args.batch_size} is more than the {len(cifar.train_images)} training images. "
            "Choose a smaller one."
        )
    total_steps = args.total_steps or args.total_epochs * len(loader)

    torch.manual_seed(args.seed)  # The same initial weights on every rank, ...
    model = build_model(args.model, len(cifar.class_names)).to(device)
    torch.manual_seed(args.seed + rank)  # ... but random draws of its own (dropout) on each.
    net = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.SGD(model.parameters(), args.learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total_steps)
    step = load_checkpoint(args.load, model, optimizer, lr_scheduler, loader)
    if step >= total_steps:
        pf.init()
        print(f"nothing left to train: the checkpoint is at step {step} of {total_steps}", flush=True)
        return

    pf.init(total_train_steps=total_steps)  # Before every other call of the SDK.
    if rank == 0:
        print(f"{args.model} on {args.dataset}: steps {step + 1} to {total_steps}, {world_size} x {device.type}")
    images_since_log, time_of_log_s = 0, time.monotonic()
    batches = iter(loader)
    net.train()
    while step < total_steps:
        try:
            images, labels = next(batches)
        except StopIteration:
            batches = iter(loader)
            continue

        with pf.train_step():  # Around one training step, on every rank.
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            loss = nn.functional.cross_entropy(net(normalize(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            lr_scheduler.step()
        step += 1
        images_since_log += args.batch_size

        if step % args.log_interval == 0:
            images_per_s = images_since_log / (time.monotonic() - time_of_log_s)
            images_since_log, time_of_log_s = 0, time.monotonic()
            # Reading the loss waits for the GPU, hence not in every step.
            metrics = {"loss": loss.item(), "learning_rate": lr_scheduler.get_last_lr()[0]}
            pf.metric(metrics)
            if rank == 0:
                print(
                    f"step {step}/{total_steps}  epoch {loader.epoch}  loss {metrics['loss']:.4f}  "
                    f"{images_per_s:.0f} images/s",
                    flush=True,
                )

        if step % args.test_interval == 0 or step == total_steps:
            accuracy = measure_accuracy(model, cifar, device, args.batch_size // world_size)
            pf.metric({"test_accuracy": accuracy})
            if rank == 0:
                print(f"step {step}/{total_steps}  test accuracy {accuracy:.1%}", flush=True)

        is_emergency = pf.is_emergency_save()  # A machine is about to be taken away: save now.
        if args.save and (step % args.save_interval == 0 or step == total_steps or is_emergency):
            save_checkpoint(args.save, step, model, optimizer, lr_scheduler, loader)
            pf.upload_checkpoint()  # On every rank; returns when the files may be overwritten.


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help="small, or a classification model of torchvision (resnet50)")
    parser.add_argument("--dataset", default="cifar100", choices=["cifar10", "cifar100"])
    parser.add_argument("--data-path", type=Path, required=True, help="folder of the unpacked archive, or above it")
    parser.add_argument("--batch-size", type=positive, default=256, help="images in a step, all processes together")
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--total-epochs", type=positive, default=50)
    parser.add_argument("--total-steps", type=positive, help="instead of --total-epochs")
    parser.add_argument("--log-interval", type=positive, default=100, help="steps")
    parser.add_argument("--save-interval", type=positive, default=100, help="steps")
    parser.add_argument("--test-interval", type=positive, default=100, help="steps")
    parser.add_argument("--num-dataloader-workers", type=int, default=0, help="processes per training process")
    parser.add_argument("--save", type=Path, help="folder for the checkpoint; nothing is saved without it")
    parser.add_argument("--load", type=Path, help="folder to resume from, where it holds a checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deterministic", action="store_true", help="bit-identical results on a GPU, a little slower")
    return parser.parse_args()


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return number


def join_process_group() -> tuple[int, int, torch.device]:
    """Rank, number of ranks and this rank's device; without torchrun a group of one."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        return 0, 1, device
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return dist.get_rank(), dist.get_world_size(), device


def build_model(name: str, num_classes: int) -> nn.Module:
    if name == "small":
        return SmallNet(num_classes)
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {nearest[0]}?" if nearest else " Try small, resnet18 or resnet50."
        raise SystemExit(f"--model {name}: torchvision has no such classification model.{hint}")
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes)


class SmallNet(nn.Sequential):
    """Three convolutions: learns in seconds on a CPU."""

    def __init__(self, num_classes: int) -> None:
        layers: list[nn.Module] = []
        for num_inputs, num_outputs in [(3, 16), (16, 32), (32, 64)]:
            layers += [nn.Conv2d(num_inputs, num_outputs, 3, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(num_outputs), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


def measure_accuracy(model: nn.Module, cifar: Cifar, device: torch.device, batch_size: int) -> float:
    """Share of test images named rightly. Collective: every rank tests its part."""
    copy_buffers_from_rank0(model)
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    images, labels = cifar.test_images[rank::world_size], cifar.test_labels[rank::world_size]
    num_right = torch.zeros((), device=device)
    model.eval()
    with torch.no_grad():
        for some_images, some_labels in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            guesses = model(normalize(some_images.to(device))).argmax(dim=1)
            num_right += (guesses == some_labels.to(device)).sum()
    model.train()
    if dist.is_initialized():
        dist.all_reduce(num_right)
    return num_right.item() / len(cifar.test_images)


def copy_buffers_from_rank0(model: nn.Module) -> None:
    """Same running statistics of batch normalisation everywhere; DDP does so at the next forward pass anyway."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    loader: ResumableDataLoader,
) -> None:
    """Replace the checkpoint in one move, so that it is never half written. Collective: call on all ranks."""
    copy_buffers_from_rank0(model)
    state: dict[str, Any] = {
        "latest_step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": lr_scheduler.state_dict(),
        "loader": loader.state_dict(),
        "rng": gather_rng_states(),
    }
    if int(os.environ.get("LOCAL_RANK", "0")) != 0:
        return  # One writer on each node: --save is a folder of the node.
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{CHECKPOINT_NAME}.rank{os.environ.get('RANK', '0')}"
    torch.save(state, temporary)
    temporary.replace(folder / CHECKPOINT_NAME)


def load_checkpoint(
    folder: Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    loader: ResumableDataLoader,
) -> int:
    """Put everything back as ``save_checkpoint`` found it; returns the step, 0 where there is no checkpoint."""
    if folder is None or not (folder / CHECKPOINT_NAME).is_file():
        return 0
    state = torch.load(folder / CHECKPOINT_NAME, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    lr_scheduler.load_state_dict(state["lr_scheduler"])
    loader.load_state_dict(state["loader"])
    restore_rng_states(state["rng"])
    return int(state["latest_step"])


if __name__ == "__main__":
    main()
