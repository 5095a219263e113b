"""Carries out what users ask of a running job through its storage root: to stop, or to rehearse a loss."""

from __future__ import annotations

import sys
from collections.abc import Callable

from periflow_ray.errors import StorageError
from periflow_ray.jobs.requests import Request, clear_requests, take_requests
from periflow_ray.loops import BackgroundLoop, Faults
from periflow_ray.runtime.supervision import Supervision
from periflow_ray.store.root import StorageRoot

POLL_INTERVAL_S = 1.0


class JobRequests:
    """Follows them in a background thread of the driver, from ``start`` (or ``with``) to ``close``.

    Args:
        on_stop: called with the seconds that a save may take.
        on_problem: gets a sentence for the user, once, when a request could not be carried out.
    """

    def __init__(
        self,
        root: StorageRoot,
        job_id: int,
        supervision: Supervision,
        on_stop: Callable[[float], None],
        on_problem: Callable[[str], None] | None = None,
    ) -> None:
        self._root = root
        self._job_id = job_id
        self._supervision = supervision
        self._on_stop = on_stop
        self._has_cleared = False
        self._faults = Faults("looking for requests of the user", on_problem)
        self._loop = BackgroundLoop("job-requests", self._look, POLL_INTERVAL_S, faults=self._faults)

    def start(self) -> JobRequests:
        """Begin to look, for what is asked from now on."""
        self._clear()
        self._loop.start()
        return self

    def __enter__(self) -> JobRequests:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Look for no more of them."""
        self._loop.close()

    def _clear(self) -> None:
        """Forget what was asked of an earlier driver: it is not meant for this one."""
        try:
            clear_requests(self._root, self._job_id)
        except (OSError, StorageError) as err:  # The next look may find the storage again.
            print(f"requests cannot be read: {err}", file=sys.stderr)
            return
        self._has_cleared = True

    def _look(self) -> None:
        if not self._has_cleared:
            self._clear()
            return
        try:
            requests = take_requests(self._root, self._job_id)
        except (OSError, StorageError) as err:  # The next look may find the storage again.
            print(f"requests cannot be read: {err}", file=sys.stderr)
            return
        for request in requests:
            try:
                self._carry_out(request)
            except Exception as err:  # The others are not to suffer for it.
                self._faults.take(err)

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
