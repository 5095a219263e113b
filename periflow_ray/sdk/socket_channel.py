"""Inside a command job: the session talks to the node's member over its Unix-domain socket.

When the member dies the training goes on untracked: nothing here raises or waits for a dead peer, and the user
is told once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from periflow_ray.errors import PeriFlowError
from periflow_ray.loops import Faults
from periflow_ray.sdk import wire
from periflow_ray.sdk.channel import Hello, MetricRecord

logger = logging.getLogger("periflow_ray")


class SocketChannel:
    """A connection to the node's member.

    Args:
        socket_path: the member's Unix-domain socket, from ``PERIFLOW_SESSION``.
    """

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._socket: socket.socket | None = None
        self._send_lock = threading.Lock()
        self._reply = threading.Condition()
        self._num_replies = 0
        self._num_requests = 0
        self._reply_error: str | None = None
        self._is_lost = False
        self._is_closing = False
        self._has_told_too_large = False
        self._on_announced_step: Callable[[int], bool] = lambda step: True
        self._read_step: Callable[[], int] = lambda: 0
        self._faults = Faults(
            "a message of the node agent",
            lambda text: logger.warning("periflow-ray: %s Training goes on.", text),
            logger.debug,
        )

    def open(self, hello: Hello, on_announced_step: Callable[[int], bool], read_step: Callable[[], int]) -> None:
        wire.require_same_version(os.environ.get(wire.VERSION_VARIABLE))
        self._on_announced_step = on_announced_step
        self._read_step = read_step
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(self._socket_path)
        except OSError as err:
            self._lose(f"cannot reach the node agent at {self._socket_path} ({err.strerror or err})")
            return
        # A forked child's copy would keep the connection open after this process was killed.
        os.register_at_fork(after_in_child=self._socket.close)
        threading.Thread(target=self._receive, name="periflow-receiver", daemon=True).start()
        self.greet(hello)

    def greet(self, hello: Hello) -> None:
        self._send(wire.encode("hello", version=wire.PROTOCOL_VERSION, **dataclasses.asdict(hello)))

    def send(self, step: int, records: list[MetricRecord], asked_step: int) -> None:
        metrics = [(record.step, record.time_unix_s, record.values) for record in records]
        message = wire.encode("records", step=step, metrics=metrics, asked_step=asked_step)
        if len(message) < wire.MAX_MESSAGE_BYTES:
            self._send(message)
        elif len(records) > 1:
            self.send(step, records[: len(records) // 2], asked_step)
            self.send(step, records[len(records) // 2 :], asked_step)
        else:
            self.send(step, [], asked_step)
            self._tell_too_large(step)

    def save_checkpoint(self, step: int, replace_waiting: bool) -> None:
        with self._reply:
            self._num_requests += 1
            request = self._num_requests
        self._send(wire.encode("checkpoint", step=step, replace_waiting=replace_waiting))
        with self._reply:
            self._reply.wait_for(lambda: self._is_lost or self._num_replies >= request)
            error, self._reply_error = self._reply_error, None
        if error is not None:
            raise PeriFlowError(f"the checkpoint of step {step} could not be saved: {error}")

    def close(self, has_failed: bool = False) -> None:
        self._is_closing = True
        self._send(wire.encode("bye", has_failed=has_failed))
        if self._socket is not None:
            # close() alone leaves the connection open for as long as the receiver waits in it.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def _tell_too_large(self, step: int) -> None:
        if not self._has_told_too_large:
            self._has_told_too_large = True
            logger.warning(
                "periflow-ray: the metrics of one pf.metric() call at step %d are larger than %d MiB and left out. "
                "Write data of this size to a file under CKPT_DIR.",
                step,
                wire.MAX_MESSAGE_BYTES >> 20,
            )

    def _send(self, message: bytes) -> None:
        if self._is_lost or self._socket is None:
            return
        with self._send_lock:
            try:
                self._socket.sendall(message)
            except OSError as err:
                self._lose(f"lost the node agent ({err.strerror or err})")

    def _receive(self) -> None:
        assert self._socket is not None
        try:
            for message in wire.read_messages(self._socket):
                try:
                    self._take(message)
                except Exception as err:  # The next message may be one that this process understands.
                    self._faults.take(err)
        finally:
            # Whatever ends this thread, nobody must wait for replies that it would have read.
            self._lose("the node agent is gone")

    def _take(self, message: Mapping[str, Any]) -> None:
        if message["kind"] == "announced":
            if not self._on_announced_step(int(message["step"])):
                self._send(wire.encode("late", step=message["step"]))
        elif message["kind"] == "report":
            self._send(wire.encode("step", step=self._read_step()))
        elif message["kind"] == "checkpointed":
            with self._reply:
                self._num_replies += 1
                self._reply_error = message["error"]
                self._reply.notify_all()

    def _lose(self, reason: str) -> None:
        with self._reply:
            if self._is_lost or self._is_closing:
                self._is_lost = True
                self._reply.notify_all()
                return
            self._is_lost = True
            self._reply.notify_all()
        logger.warning(
            "periflow-ray: %s. Training goes on, but its progress, metrics and checkpoints are no longer recorded.",
            reason,
        )
