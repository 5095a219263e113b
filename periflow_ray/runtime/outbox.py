"""A bounded queue that one background thread empties: who puts something in never waits and never sees an error."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from periflow_ray.loops import BackgroundLoop, Faults, tell

_Item = TypeVar("_Item")

RETRY_DELAYS_S = (1.0, 3.0)
# A server that is overloaded may ask for more patience than this; it does not get it.
MAX_RETRY_DELAY_S = 60.0


class DeliveryError(Exception):
    """Why something could not be delivered.

    Args:
        reason: continues a sentence, without any secret.
        is_temporary: whether trying again may help.
        retry_after_s: how long the receiver asks to wait.
    """

    def __init__(self, reason: str, *, is_temporary: bool, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_temporary = is_temporary
        self.retry_after_s = retry_after_s


class Outbox(Generic[_Item]):
    """Delivers items in their order; when it is full, the oldest are dropped.

    Args:
        receiver: name of who gets them, for the one problem that is told.
        deliver: called from the thread; may raise ``DeliveryError``, which is retried if it is temporary.
        on_problem: called once, with a sentence, when something was not delivered. Must bear calls from any thread.
        max_items: how many wait at most.
        retry_delays_s: seconds before the second, third, ... try.
        finish: called from the thread after the last item.
    """

    def __init__(
        self,
        receiver: str,
        deliver: Callable[[_Item], None],
        on_problem: Callable[[str], None],
        *,
        max_items: int,
        retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
        finish: Callable[[], None] | None = None,
    ) -> None:
        self._receiver = receiver
        self._deliver = deliver
        self._on_problem = on_problem
        self._retry_delays_s = retry_delays_s
        self._finish = finish
        # Nothing here takes a lock, so that a signal handler may put something in, wherever it came in between.
        self._waiting: deque[_Item] = deque(maxlen=max_items)
        self._is_closing = False
        self._has_complained = False
        self._has_finished = False
        self._abandoned = threading.Event()
        self._complaint_lock = threading.Lock()
        # Neither text nor trace of an error is told: they may hold a key.
        faults = Faults("outbox", lambda text: self.complain("sending failed unexpectedly"), lambda trace: None)
        self._loop = BackgroundLoop("outbox", self._deliver_waiting, None, acts_at_close=True, faults=faults)

    def put(self, item: _Item) -> None:
        """Deliver an item soon; ignored once the box is closing."""
        if self._is_closing:
            return
        self._waiting.append(item)
        # A job that sends nothing has no thread for it.
        self._loop.start()
        self._loop.wake()

    def begin_close(self) -> None:
        """Take nothing more; what waits is still delivered."""
        self._is_closing = True
        self._loop.begin_close()

    def end_close(self, deadline_s: float) -> None:
        """Wait for the deliveries until a time of ``time.monotonic``, and give up the rest."""
        if not self._loop.close(deadline_s - time.monotonic()):
            self._abandoned.set()
            self.complain("some were not sent before the job ended")

    def complain(self, reason: str) -> None:
        """Tell a problem, if it is the first one."""
        with self._complaint_lock:
            if self._has_complained:
                return
            self._has_complained = True
        tell(self._on_problem, f"not everything reaches {self._receiver}: {reason}. The job goes on without it.")

    def _deliver_waiting(self) -> None:
        while self._waiting and not self._abandoned.is_set():
            self._try_to_deliver(self._waiting.popleft())
        if self._is_closing and self._finish is not None and not self._has_finished and not self._abandoned.is_set():
            self._has_finished = True
            try:
                self._finish()
            except (Exception, SystemExit) as err:
                self.complain(type(err).__name__)

    def _try_to_deliver(self, item: _Item) -> None:
        for retry_delay_s in (*self._retry_delays_s, None):
            try:
                self._deliver(item)
            except DeliveryError as err:
                if not err.is_temporary or retry_delay_s is None:
                    return self.complain(err.reason)
                delay_s = max(retry_delay_s, min(err.retry_after_s, MAX_RETRY_DELAY_S))
            except (Exception, SystemExit) as err:
                # Not its text: that may hold a key.
                return self.complain(type(err).__name__)
            else:
                return None
            if self._abandoned.wait(delay_s):
                return None
        return None
