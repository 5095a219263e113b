"""What a seed stands for: the training's setting, and what happens to it in which order. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

STORAGES = ("folder", "small disk", "S3")
# Few enough that most events hit a training that has recovered from the one before.
JOINED_SHARE = 0.25
MAX_PAUSE_S = 2.0


@dataclass(frozen=True)
class Setting:
    """Where the storage root lies, how many machines there are, and whether the job goes on with fewer of them."""

    storage: str
    num_machines: int
    is_elastic: bool


@dataclass(frozen=True)
class Planned:
    """One event to come; ``is_joined`` if the next one does not wait until the job has recovered from it."""

    number: int
    name: str
    seed: int
    pause_s: float
    is_joined: bool

    def __str__(self) -> str:
        joined = ", and at once" if self.is_joined else ""
        return f"{self.number}. after {self.pause_s:.1f} s {self.name} (seed {self.seed}){joined}"


def choose_setting(seed: int) -> Setting:
    """The setting of a run."""
    chance = random.Random(f"setting {seed}")
    return Setting(chance.choice(STORAGES), chance.choice((2, 3)), chance.random() < 0.5)


def plan_events(seed: int, names: Sequence[str]) -> Iterator[Planned]:
    """Events without end: all of them in a random order, then all in another one.

    Args:
        names: those that can happen in this setting, in an order that does not change.
    """
    chance = random.Random(f"events {seed}")
    number, was_joined = 0, False
    while True:
        for name in chance.sample(names, len(names)):
            number += 1
            # Never more than two at once: the job has to make steps.
            was_joined = not was_joined and chance.random() < JOINED_SHARE
            yield Planned(number, name, chance.randrange(10**6), chance.uniform(0.0, MAX_PAUSE_S), was_joined)
