"""What the monitor's components share: the job, the attempt under way, news of it, and the job's events."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from periflow_ray.jobs import read_claim, require_job
from periflow_ray.jobs.attempts import EndCause
from periflow_ray.jobs.succession import Ownership, leave_to_successor
from periflow_ray.runtime.monitor.attempt import Attempt
from periflow_ray.runtime.monitor.changes import Changes
from periflow_ray.runtime.monitor.contract import EndAttempt, Order
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.store.patience import Patience
from periflow_ray.store.root import StorageRoot


class JobContext:
    """One for each monitor; the components keep what is theirs alone to themselves.

    Args:
        store_event: takes an event's kind, its text and the attempt; may wait for the storage.
    """

    def __init__(
        self, root: StorageRoot, job_id: int, rules: JobRules, store_event: Callable[[str, str, int], object]
    ) -> None:
        self.root = root
        self.job_id = job_id
        self.rules = rules
        self.attempt = Attempt(0, ("", 0), 0)
        self.membership = Changes()
        """Who has joined, started and left, and how the attempt ends."""
        self.reports = Changes()
        """How far the ranks are, and which of them are late."""
        self.checkpoints = Changes()
        """What is on its way and what is settled."""
        self._orders = Changes()
        self._store_event = store_event
        self._event_thread = ThreadPoolExecutor(1, thread_name_prefix="events")
        self._claim: str | None = None
        self._ownership = Ownership(root, job_id, rules.driver_id)

    def require_ownership(self) -> None:
        """End this process if a newer driver has taken up the job. Waits for the storage.

        Raises:
            OSError, StorageError: the storage does not say.
        """
        if self._ownership.is_lost():
            leave_to_successor(self.job_id)

    def require_job(self) -> None:
        """See to it that the storage root still has the job. Waits for the storage.

        Raises:
            OSError, StorageError: it has not, or does not answer.
        """
        if self._claim is None:
            self._claim = read_claim(self.root, self.job_id)
        else:
            require_job(self.root, self.job_id, self._claim)

    @property
    def claim(self) -> str:
        """What tells the job from another one that had its number, once an attempt has begun."""
        return self._claim or ""

    def write_event(self, kind: str, text: str) -> None:
        """Add to the job's events."""
        # Elsewhere, because a storage that hangs must not hold up the members.
        self._event_thread.submit(self._store_event, kind, text, self.attempt.number)

    def note(self, text: str) -> None:
        """A sentence for the user that changes nothing."""
        self.write_event("note", text)

    def patience(self, is_cancelled: Callable[[], bool]) -> Patience:
        """With a storage that is away when somebody has to wait for it."""
        return Patience(self.note, is_cancelled=is_cancelled)

    def begin(self, attempt: Attempt) -> None:
        """Put an attempt in the place of the one before; whoever waits for orders of that one is sent away."""
        self.attempt = attempt
        self.tell_members()

    def order(self, attempt: Attempt, order: Order) -> None:
        """Tell all members of an attempt to do something, unless they were told to leave."""
        if attempt.cause is None:
            attempt.orders.append(order)
            self._orders.tell()

    def end(self, attempt: Attempt, cause: EndCause, text: str, how: str = "ended") -> bool:
        """Order the members of an attempt to leave; False if they were ordered to before.

        Args:
            how: the word of the event.
        """
        has_news = attempt.end(cause, text)
        if has_news and cause != "stop":
            kind = "attempt_ended" if cause in ("resize", "preemption") else "attempt_failed"
            self.write_event(kind, f"attempt {attempt.number} {how}: {text}")
        self.tell_members()
        return has_news

    def tell_members(self) -> None:
        """Something changed that those who wait for members, or for the attempt's end, look at."""
        self.membership.tell()
        self.reports.tell()
        self._orders.tell()

    async def wait_for_orders(self, number: int, num_seen: int) -> list[Order]:
        """Orders of an attempt beyond the first ``num_seen``; waits until there is one."""
        attempt = self.attempt
        await self._orders.wait_for(
            lambda: self.attempt is not attempt or len(attempt.orders) > num_seen or attempt.has_everybody_left
        )
        if attempt.number != number or self.attempt is not attempt:
            return [EndAttempt()]
        return attempt.orders[num_seen:] or [EndAttempt()]

    def close(self) -> None:
        """Write out the events."""
        self._event_thread.shutdown()
