"""The seam between the SDK and whoever listens: a file, the member behind a socket, or the member of this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Hello:
    """What a rank says of itself when it opens its session; ranks and sizes as torchrun counts them.

    ``is_guess``: nothing has said yet which rank it is; a process group may.
    ``resumed_step``: where it begins to count.
    """

    rank: int
    local_rank: int
    local_world_size: int | None
    total_train_steps: int | None
    pid: int
    is_guess: bool = False
    resumed_step: int | None = None


@dataclass(frozen=True)
class MetricRecord:
    """One ``metric`` call: the step it was made in, Unix time in seconds, and the user's mapping."""

    step: int
    time_unix_s: float
    values: Mapping[str, Any]


class Channel(Protocol):
    """Carries a session's records away. Everything but ``save_checkpoint`` is called off the step path."""

    def open(self, hello: Hello, on_announced_step: Callable[[int], bool], read_step: Callable[[], int]) -> None:
        """Connect; later call ``on_announced_step`` when an emergency save is announced (-1 means now).

        It gives False where this rank is beyond the step already; whoever announced it has to know.

        ``read_step`` gives the current step at any time, from any thread.
        """

    def greet(self, hello: Hello) -> None:
        """Say anew which rank this is: it was a guess when the session was opened."""

    def send(self, step: int, records: list[MetricRecord], asked_step: int) -> None:
        """Deliver the current step and the metrics since the last call. Never raises for a lost peer.

        ``asked_step``: where ``is_emergency_save`` was last asked; -1 for never.
        """

    def save_checkpoint(self, step: int, replace_waiting: bool) -> None:
        """Return once a consistent snapshot of the output checkpoint directory exists.

        ``replace_waiting``: give up a checkpoint whose upload has not begun, rather than wait for its turn.

        Raises:
            PeriFlowError: the snapshot could not be made.
        """

    def close(self, has_failed: bool = False) -> None:
        """Say goodbye; what was sent before is delivered first.

        ``has_failed``: this process ends by an exception that nobody caught, or with an exit code other than 0.
        """
