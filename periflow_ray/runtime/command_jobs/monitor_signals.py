"""What the monitor asks of a node agent while the user's processes run."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from signal import SIGKILL
from typing import Any

from periflow_ray.jobs.attempts import EndCause
from periflow_ray.runtime.command_jobs.node_log import NodeLog
from periflow_ray.runtime.command_jobs.reporter import Reporter
from periflow_ray.runtime.command_jobs.session_server import SessionServer
from periflow_ray.runtime.monitor.attempt import Signal
from periflow_ray.runtime.worker.follow_signals import follow_signals
from periflow_ray.runtime.worker.stacks import dump_stacks

REPORT_TIMEOUT_S = 0.3


class MonitorSignals:
    """A background thread that carries out the signals of one attempt, until the one that ends it.

    Args:
        on_end: called once when the user's processes have to end, with the attempt's cause where it is known.
    """

    def __init__(
        self,
        monitor: Any,
        attempt: int,
        node_rank: int,
        server: SessionServer,
        reporter: Reporter,
        log: NodeLog,
        on_end: Callable[[EndCause | None], None],
    ) -> None:
        self._monitor = monitor
        self._attempt = attempt
        self._node_rank = node_rank
        self._server = server
        self._reporter = reporter
        self._log = log
        self._on_end = on_end
        threading.Thread(target=self._follow, name="monitor-signals", daemon=True).start()

    def _follow(self) -> None:
        for signal in follow_signals(self._monitor, self._attempt):
            self._carry_out(signal)
            if signal.kind == "end":
                return
        self._on_end(None)

    def _carry_out(self, signal: Signal) -> None:
        if signal.kind == "report":
            self._server.ask_steps(REPORT_TIMEOUT_S)
            self._reporter.answer_report()
        elif signal.kind == "save":
            self._server.announce(signal.step)
        elif signal.kind == "dump":
            for rank, pid in sorted(self._server.pids.items()):
                for line in dump_stacks(pid):
                    self._log.write(f"[rank {rank}] {line}")
        elif signal.kind == "kill_rank":
            victim = self._server.pids.get(signal.target)
            if victim is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, SIGKILL)
        elif signal.kind == "kill_node":
            if signal.target == self._node_rank:
                os.kill(os.getpid(), SIGKILL)
        else:
            self._on_end(signal.cause)
