"""How many batches a Lightning training has, so that progress and time left can be shown."""

from __future__ import annotations

import math
from typing import Any


def count_train_batches(trainer: Any) -> int | None:
    """Count the training batches of the whole ``fit``, from its very start, on each rank.

    Needs the data to be set up, as it is from ``on_train_start`` on.

    Returns:
        The smaller of what ``max_epochs`` and ``max_steps`` allow; None if neither sets a limit that can be counted.
    """
    batches_per_epoch = trainer.num_training_batches
    limits = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0 and not math.isinf(batches_per_epoch):
        limits.append(trainer.max_epochs * batches_per_epoch)
    # In manual optimization a batch may make any number of optimizer steps.
    if trainer.max_steps >= 0 and trainer.lightning_module.automatic_optimization:
        limits.append(_count_batches_of_steps(trainer.max_steps, batches_per_epoch, trainer.accumulate_grad_batches))
    return min(limits, default=None)


def _count_batches_of_steps(num_optimizer_steps: int, batches_per_epoch: float, batches_per_step: int) -> int:
    if math.isinf(batches_per_epoch):
        return num_optimizer_steps * batches_per_step
    # The last optimizer step of an epoch takes what is left, which may be fewer batches.
    steps_per_epoch = math.ceil(batches_per_epoch / batches_per_step)
    num_epochs, num_steps_left = divmod(num_optimizer_steps, steps_per_epoch)
    return num_epochs * int(batches_per_epoch) + num_steps_left * batches_per_step
