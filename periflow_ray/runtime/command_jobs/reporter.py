"""Sends what the ranks of a node recorded to the monitor, and makes log lines visible, a few times a second."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ray

from periflow_ray.runtime.command_jobs.session_server import SessionServer

SEND_INTERVAL_S = 0.5


class Reporter:
    """A background thread between the session server and the monitor."""

    def __init__(
        self, server: SessionServer, monitor: Any, attempt: int, node_rank: int, flush_log: Callable[[], None]
    ) -> None:
        self._server = server
        self._monitor = monitor
        self._attempt = attempt
        self._node_rank = node_rank
        self._flush_log = flush_log
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._sent: Any = None
        self._last_steps: dict[int, int] = {}
        self._was_pausing = False
        self._thread = threading.Thread(target=self._send_until_closed, name="reporter", daemon=True)
        self._thread.start()

    def answer_report(self) -> None:
        """Send now what the ranks have just said, as the answer that the monitor waits for."""
        self._send(answers_report=True)

    def send_now(self) -> None:
        """Send what was recorded so far, before whatever this process asks of the monitor next."""
        self._send()

    def close(self) -> None:
        """Send the rest; returns when the monitor has it."""
        self._closing.set()
        self._thread.join()
        self._send()
        if self._sent is not None:
            ray.get(self._sent)

    def _send_until_closed(self) -> None:
        while not self._closing.wait(SEND_INTERVAL_S):
            self._flush_log()
            # One batch on its way at a time: a slow monitor gets larger batches, not a longer queue.
            if self._sent is None or ray.wait([self._sent], timeout=0)[0]:
                self._send()

    def _send(self, answers_report: bool = False) -> None:
        with self._lock:
            records, is_pausing = self._server.take_records(), self._server.is_pausing
            is_changed = (records.steps, is_pausing) != (self._last_steps, self._was_pausing)
            if records.metrics or is_changed or answers_report:
                self._last_steps, self._was_pausing = records.steps, is_pausing
                self._sent = self._monitor.record.remote(
                    records.steps,
                    records.total_train_steps,
                    records.metrics,
                    self._node_rank,
                    answers_report,
                    self._attempt,
                    is_pausing,
                )
