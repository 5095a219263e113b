"""Looks for what users ask of a running job through its storage root: to stop, or to rehearse a loss."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from types import TracebackType

from periflow_ray.errors import StorageError
from periflow_ray.jobs.requests import Request, clear_requests, take_requests
from periflow_ray.store.root import StorageRoot

POLL_INTERVAL_S = 1.0


class JobRequests:
    """A background thread of the driver, while it is open.

    Args:
        carry_out: takes each request.
    """

    def __init__(self, root: StorageRoot, job_id: int, carry_out: Callable[[Request], None]) -> None:
        self._root = root
        self._job_id = job_id
        self._carry_out = carry_out
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="job-requests", daemon=True)

    def __enter__(self) -> JobRequests:
        # What was asked of an earlier driver is not meant for this one.
        clear_requests(self._root, self._job_id)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._closing.wait(POLL_INTERVAL_S):
            try:
                for request in take_requests(self._root, self._job_id):
                    self._carry_out(request)
            except (OSError, StorageError) as err:  # The next look may find the storage again.
                print(f"requests cannot be read: {err}", file=sys.stderr)
            except Exception:
                traceback.print_exc()
