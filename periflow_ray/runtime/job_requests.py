"""Looks for what users ask of a running job through its storage root: to stop, or to rehearse a loss."""

from __future__ import annotations

import sys
from collections.abc import Callable

from periflow_ray.errors import StorageError
from periflow_ray.jobs.requests import Request, clear_requests, take_requests
from periflow_ray.loops import BackgroundLoop, Faults
from periflow_ray.store.root import StorageRoot

POLL_INTERVAL_S = 1.0


class JobRequests:
    """Follows them in a background thread of the driver, from ``start`` (or ``with``) to ``close``.

    Args:
        carry_out: takes each request.
        on_problem: gets a sentence for the user, once, when a request could not be carried out.
    """

    def __init__(
        self,
        root: StorageRoot,
        job_id: int,
        carry_out: Callable[[Request], None],
        on_problem: Callable[[str], None] | None = None,
    ) -> None:
        self._root = root
        self._job_id = job_id
        self._carry_out = carry_out
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
