"""What a cluster asks of a cloud, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from periflow_ray.cluster.config.spec import ClusterSpec
from periflow_ray.errors import ClusterError

# Of a machine that costs its price, in either cloud's words.
RUNNING_STATES = frozenset({"pending", "running", "starting", "creating", "updating"})


class ProviderError(ClusterError):
    """The provider refused a request, or did not answer; ``code`` is its own word for why."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message, code)
        self.code = code

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at before a cluster is made."""

    subject: str
    verdict: Literal["good", "warning", "bad"]
    text: str


@dataclass(frozen=True)
class Machine:
    """A machine of a cluster, as the provider has it. Times in Unix seconds.

    Args:
        node_type: ``head``, or the name of the worker's VM type.
        state: the provider's word.
        setup: Ray's word for how far its setup is; empty where it has none.
        reason: why it is not running, if the provider says so.
    """

    id: str
    node_type: str
    instance_type: str
    is_spot: bool
    state: str
    setup: str
    zone: str
    address: str | None
    public_address: str | None
    launched_unix_s: float
    reason: str = ""


@dataclass(frozen=True)
class Resource:
    """Something of a cluster in the account.

    Args:
        kind: as the provider's users call it.
        usd_per_hour: about; 0 for what costs nothing.
    """

    kind: str
    id: str
    state: str = ""
    usd_per_hour: float = 0.0

    def __str__(self) -> str:
        state = f" ({self.state})" if self.state else ""
        price = f", about ${self.usd_per_hour:.3f} per hour" if self.usd_per_hour else ""
        return f"{self.kind} {self.id}{state}{price}"


@dataclass(frozen=True)
class Preparation:
    """What a cluster is to have in the account before its first machine.

    Args:
        public_key: of whoever makes the cluster, a line of ``authorized_keys``; it has the place of ``key_path``.
        ssh_from: addresses that may use SSH, in CIDR notation.
        storage_uri: which the nodes read and write.
        tell: gets a sentence about each thing that is made.
    """

    spec: ClusterSpec
    key_path: str
    public_key: str
    ssh_from: str
    storage_uri: str
    tell: Callable[[str], None]


class Provider(Protocol):
    """One cloud's API for one region; every method raises ``ProviderError``."""

    def check(self, spec: ClusterSpec, *, is_new: bool) -> list[Finding]:
        """Look at credentials, permissions, images, offers and quota.

        Args:
            is_new: whether the head is still to be launched.
        """

    def prepare(self, preparation: Preparation, config: dict[str, Any]) -> None:
        """Make what the cluster's machines need, unless it is there, and put it into the cluster's configuration.

        Ray has nothing left to make then but machines.
        """

    def list_machines(self, name: str) -> list[Machine]:
        """Every machine of a cluster that is not gone, also stopped ones."""

    def end_machines(self, name: str) -> None:
        """Ask for the end of all machines of a cluster in one request, which holds even if one of them makes it."""

    def list_resources(self, name: str) -> list[Resource]:
        """Everything of a cluster that is in the account, in the order in which it can be removed."""

    def remove(self, resource: Resource) -> None:
        """Ask for the end of one resource; one that is gone already is no error."""
