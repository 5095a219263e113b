"""This machine in the eyes of Ray: its nodes are found and drained through the cluster's control store, the GCS."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from periflow_ray.errors import ClusterError
from periflow_ray.runtime import ray_private
from periflow_ray.runtime.notices import acknowledgement

CALL_TIMEOUT_S = 2.0
_SETTINGS = {
    # A GCS that is being restarted must not take the watcher with it: Ray's default ends the process after 60 s.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "86400",
    # Ray waits 30 s for the GCS of a new client, during which no signal is heard.
    "RAY_py_gcs_connect_timeout_s": "2",
    "RAY_gcs_rpc_server_connect_timeout_s": "1",
}


class DrainableMachine(Protocol):
    """What the watcher does with Ray. Each method raises ClusterError if Ray cannot be asked, or says no."""

    def drain(self, reason: str, deadline_unix_s: float) -> list[str]:
        """Tell Ray that this machine is preempted; returns the hexadecimal ids of its nodes, at least one."""
        ...

    def is_needed(self, node_ids: Sequence[str]) -> bool:
        """Whether one of these nodes has work that is neither saved nor ended."""
        ...

    def release(self, node_ids: Sequence[str], reason: str) -> None:
        """Move the deadline of drained nodes to the present."""
        ...


class RayMachine:
    """Imports Ray at the first call and not before: the watcher needs it in a machine's last minutes only.

    Args:
        gcs_address: ``HOST:PORT``; None for the cluster that this machine has joined.
        node_id_hex: the node to drain; None for every living node at one of this machine's addresses.
    """

    def __init__(self, gcs_address: str | None = None, node_id_hex: str | None = None) -> None:
        self._gcs_address = gcs_address
        self._node_id_hex = node_id_hex
        self._client: Any = None

    def drain(self, reason: str, deadline_unix_s: float) -> list[str]:
        with self._translate_errors():
            client = self._connect()
            node_ids = self._find_node_ids(client)
            _drain_nodes(client, node_ids, reason, deadline_unix_s)
        return node_ids

    def is_needed(self, node_ids: Sequence[str]) -> bool:
        with self._translate_errors():
            client = self._connect()
            # A drained node leaves Ray by itself when nothing runs on it, at once if it was idle. One that Ray does not
            # know may be working: a GCS that was started anew has forgotten its nodes.
            dead = {
                node_id for node_id, node in ray_private.read_nodes(client, CALL_TIMEOUT_S).items() if not node.is_alive
            }
            left = (node_id for node_id in node_ids if node_id not in dead)
            return not all(acknowledgement.is_saved(client, node_id, CALL_TIMEOUT_S) for node_id in left)

    def release(self, node_ids: Sequence[str], reason: str) -> None:
        with self._translate_errors():
            # For a node that has left, Ray accepts this too and does nothing.
            _drain_nodes(self._connect(), node_ids, reason, time.time())

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except ClusterError:
            self._client = None
            raise
        # Ray gives its errors no common class: RpcError, AuthenticationError, ConnectionError, RuntimeError.
        except Exception as err:
            self._client = None
            raise ClusterError(f"Ray's GCS cannot be asked: {err or type(err).__name__}") from err

    def _connect(self) -> Any:
        if self._client is None:
            if "ray" not in sys.modules:
                os.environ.update({name: value for name, value in _SETTINGS.items() if name not in os.environ})
            address = self._gcs_address or ray_private.find_gcs_address()
            _require_listener(address)
            self._client = ray_private.open_gcs(address)
        return self._client

    def _find_node_ids(self, client: Any) -> list[str]:
        alive = {
            node_id: node for node_id, node in ray_private.read_nodes(client, CALL_TIMEOUT_S).items() if node.is_alive
        }
        if self._node_id_hex is not None:
            # Ray accepts the drain of a node that it does not know.
            if self._node_id_hex not in alive:
                raise ClusterError(f"Ray has no living node {self._node_id_hex}")
            return [self._node_id_hex]
        own = [node_id for node_id, node in alive.items() if is_own_address(node.address)]
        if not own:
            raise ClusterError("Ray has no living node on this machine")
        return own


def is_own_address(address: str) -> bool:
    """Whether an IP address belongs to this machine; asks no one, because only an own address can be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _drain_nodes(client: Any, node_ids: Sequence[str], reason: str, deadline_unix_s: float) -> None:
    deadline_unix_ms = int(deadline_unix_s * 1000)
    for node_id in node_ids:
        is_accepted, refusal = ray_private.drain_node(client, node_id, reason, deadline_unix_ms, CALL_TIMEOUT_S)
        if not is_accepted:
            raise ClusterError(f"Ray refuses to drain node {node_id}: {refusal}")


def _require_listener(address: str) -> None:
    """Find out quickly that nobody listens, where Ray's client would log and wait."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
    except (OSError, ValueError) as err:
        raise ClusterError(f"Ray's GCS at {address} does not answer: {err}") from err
