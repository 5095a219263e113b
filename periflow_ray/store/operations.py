"""Single storage operations: retried with backoff, stopped when asked to, failed in the project's own words."""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from periflow_ray.errors import NotFoundError, PeriflowRayError, StorageError
from periflow_ray.secret_mask import SecretMask
from periflow_ray.store.failures import Failures

_FIRST_PAUSE_S = 0.25
_PAUSE_FACTOR = 3.0
# How soon a worker that waits for a server sees that it shall stop.
_STOP_POLL_S = 0.1

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Operations:
    """Runs operations on one storage root.

    Args:
        uri: the root, for messages.
        is_local: errors of a local root are left as the system's own ``OSError``.
        failures: reads what the root's kind of storage answers.
        secrets: values that no message may contain.
        place_of_root: how messages begin that are about no key, with ``{uri}``.
        num_tries: times that an operation is tried; pauses of 0.25 s, 0.75 s, 2.25 s ... lie between.
        give_up_after_s: no new try is begun when this much time has passed.
        stop: set from any thread, it ends waiting operations and pauses.
    """

    uri: str
    is_local: bool
    failures: Failures = field(default=Failures(), repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    place_of_root: str = "storage root '{uri}'"
    num_tries: int = 3
    give_up_after_s: float = float("inf")
    stop: threading.Event = field(default_factory=threading.Event, repr=False)

    def run(self, key: str, operation: Callable[[], _Result]) -> _Result:
        """The operation's result.

        Raises:
            FileNotFoundError, NotADirectoryError, FileExistsError: as the operation raises them.
            OSError: a local root failed.
            StorageError: a server failed, with key, URI and reason.
        """
        started_s = time.monotonic()
        pause_s = _FIRST_PAUSE_S
        for num_tried in range(1, self.num_tries + 1):
            self.check_stopped()
            try:
                return operation()
            except PeriflowRayError:
                raise
            except (FileNotFoundError, NotADirectoryError, FileExistsError) as err:
                if self.failures.is_missing_container(err):
                    raise self.failed(key, err) from err
                raise
            # The clients' exceptions have no common base.
            except Exception as err:
                is_last = num_tried == self.num_tries or time.monotonic() - started_s > self.give_up_after_s
                if self.is_local and (is_last or not isinstance(err, OSError) or not self.failures.is_transient(err)):
                    raise
                if is_last or not self.failures.is_transient(err):
                    raise self.failed(key, err) from err
            # Jitter keeps workers that failed together from coming back together.
            self.stop.wait(pause_s * random.uniform(0.5, 1.5))
            pause_s *= _PAUSE_FACTOR
        raise AssertionError("num_tries is at least 1")

    def call(self, fs: Any, method: str, *args: Any, timeout_s: float | None = None, **kwargs: Any) -> Any:
        """One call of an fsspec file system's method, in time and stoppable where the file system is asynchronous.

        Raises:
            TimeoutError: it took longer than ``timeout_s``.
            StorageError: it was stopped.
        """
        if not fs.async_impl:
            return getattr(fs, method)(*args, **kwargs)
        return self.wait_for(fs, lambda: getattr(fs, f"_{method}")(*args, **kwargs), timeout_s)

    def wait_for(self, fs: Any, coroutine: Callable[[], Any], timeout_s: float | None = None) -> Any:
        """Run a coroutine in the file system's event loop; see ``call``."""
        future = asyncio.run_coroutine_threadsafe(coroutine(), fs.loop)
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while not concurrent.futures.wait([future], timeout=_STOP_POLL_S).done:
                self.check_stopped()
                if deadline_s is not None and time.monotonic() > deadline_s:
                    raise TimeoutError(f"no answer within {timeout_s:.0f} s")
        except BaseException:
            future.cancel()
            raise
        return future.result()

    def check_stopped(self) -> None:
        """Raises StorageError when the operations shall stop."""
        if self.stop.is_set():
            raise StorageError(f"the transfer with storage root '{self.uri}' was cancelled")

    def missing(self, key: str) -> NotFoundError:
        """The error for a user who asks for a key that is not there."""
        return NotFoundError(f"'{key}' does not exist in storage root '{self.uri}'")

    def failed(self, key: str, err: BaseException) -> StorageError:
        """The error for a user: key, URI and reason, without secrets."""
        reason = SecretMask(self.secrets).apply(self.failures.describe(err))
        root = self.place_of_root.format(uri=self.uri)
        return StorageError(f"'{key}' in {root}: {reason}" if key else f"{root}: {reason}")
