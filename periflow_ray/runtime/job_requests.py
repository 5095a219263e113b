"""Carries out what users ask of a running job through its storage root: to stop, or to rehearse a loss."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from periflow_ray.errors import StorageError
from periflow_ray.jobs.requests import Request, clear_requests, take_requests
from periflow_ray.runtime.supervision import Supervision
from periflow_ray.store.root import StorageRoot

POLL_INTERVAL_S = 1.0


class JobRequests:
    """A background thread of the driver, until it is closed.

    Args:
        on_stop: called with the seconds that a save may take.
    """

    def __init__(
        self, root: StorageRoot, job_id: int, supervision: Supervision, on_stop: Callable[[float], None]
    ) -> None:
        self._root = root
        self._job_id = job_id
        self._supervision = supervision
        self._on_stop = on_stop
        # What was asked of an earlier driver is not meant for this one.
        clear_requests(root, job_id)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="job-requests", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look for no more of them."""
        self._closing.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._closing.wait(POLL_INTERVAL_S):
            try:
                requests = take_requests(self._root, self._job_id)
            except (OSError, StorageError) as err:  # The next look may find the storage again.
                print(f"requests cannot be read: {err}", file=sys.stderr)
                continue
            for request in requests:
                self._carry_out(request)

    def _carry_out(self, request: Request) -> None:
        fields = request.fields
        if request.kind == "stop":
            self._on_stop(float(fields.get("timeout_s", 0.0)))
        else:
            self._supervision.monitor.drill.remote(
                fields.get("what", ""),
                float(fields.get("notice_s") or 0.0),
                int(fields.get("node") or 0),
                int(fields.get("rank") or 0),
            )
