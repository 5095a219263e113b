"""Brings a member what the monitor orders."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from periflow_ray.loops import Faults
from periflow_ray.runtime.monitor.client import MonitorClient, MonitorLostError
from periflow_ray.runtime.monitor.contract import EndAttempt, Order

RETRY_INTERVAL_S = 1.0


class OrderFollower:
    """A background thread that carries out the orders of one attempt, up to the one that ends it.

    Args:
        carry_out: takes each order.
        note: takes a sentence for the user, once, when an order could not be carried out.
        on_lost: called when the monitor is gone, as it is with the job's end.
    """

    def __init__(
        self,
        monitor: MonitorClient,
        attempt: int,
        carry_out: Callable[[Order], None],
        on_lost: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        self._monitor = monitor
        self._attempt = attempt
        self._carry_out = carry_out
        self._on_lost = on_lost
        self._note = note

    def start(self) -> None:
        """Begin to follow; the thread ends by itself."""
        threading.Thread(target=self._follow, name="orders", daemon=True).start()

    def _follow(self) -> None:
        num_seen, faults = 0, Faults("following the monitor's orders", self._note)
        while True:
            try:
                orders = self._monitor.next_orders(self._attempt, num_seen)
            except MonitorLostError:
                self._on_lost()
                return
            except Exception as err:
                faults.take(err)
                time.sleep(RETRY_INTERVAL_S)
                continue
            num_seen += len(orders)
            for order in orders:
                try:
                    self._carry_out(order)
                except Exception as err:  # The next order may be the one that ends the attempt.
                    faults.take(err)
            if any(isinstance(order, EndAttempt) for order in orders):
                return
