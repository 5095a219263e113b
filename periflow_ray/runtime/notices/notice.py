"""What a cloud says about this machine's future, the same for every cloud."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from periflow_ray.errors import ClusterError

_MAX_SHOWN_CHARS = 200


class MetadataError(ClusterError):
    """The metadata service does not answer, or with nothing that can be understood; the message says which of them."""


@dataclass(frozen=True)
class Notice:
    """One announcement of the cloud.

    Args:
        kind: "preemption" means that the machine goes; "warning" asks for nothing but a line in the log.
        deadline_unix_s: when the machine may go; None when it is not said, which means at any moment.
        notice_id: equal for the same announcement read twice.
        text: one plain sentence about it, in one line.
        is_acknowledgeable: the cloud takes the machine as soon as the notice is acknowledged, and nothing else with it.
    """

    kind: Literal["preemption", "warning"]
    deadline_unix_s: float | None
    notice_id: str
    text: str
    is_acknowledgeable: bool = False


class NoticeSource(Protocol):
    """One cloud's way of announcing. Every method asks the metadata service and raises MetadataError if that fails."""

    cloud_name: str
    interval_s: float

    def is_present(self) -> bool:
        """Whether this cloud's metadata service answers here; raises nothing and takes about a second at most."""
        ...

    def poll(self) -> Notice | None:
        """The most urgent notice that no earlier call has returned."""
        ...

    def acknowledge(self, notice: Notice) -> None:
        """Let the cloud take the machine now; does nothing unless ``notice.is_acknowledgeable``."""
        ...


def shown(text: str) -> str:
    """What a metadata service said, as a log may repeat it: one line without control characters, and not a long one."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[:_MAX_SHOWN_CHARS])


def take_first_new(notices: Iterable[Notice], returned_ids: set[str]) -> Notice | None:
    """The first notice whose id is not in ``returned_ids``, which then has it."""
    for notice in notices:
        if notice.notice_id not in returned_ids:
            returned_ids.add(notice.notice_id)
            return notice
    return None
