"""Takes requests as a job's driver does, and lets the test say what follows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from periflow_ray.jobs import JobState
from periflow_ray.jobs.attempts import AttemptRecord, SaveRecord
from periflow_ray.jobs.requests import Request, take_requests
from periflow_ray.store.root import StorageRoot


class DriverStandIn:
    """Runs while it is open; ``react`` is called with each request of job 1, and ``requests`` keeps them."""

    def __init__(self, root: StorageRoot, react: Callable[[Request], None]) -> None:
        self._root = root
        self._react = react
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.requests: list[Request] = []

    def __enter__(self) -> DriverStandIn:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(0.01):
            for request in take_requests(self._root, 1):
                self.requests.append(request)
                self._react(request)


def running_state(attempt: int = 1) -> JobState:
    """A job whose driver lives."""
    return JobState("running", 1000.0, heartbeat_unix_s=time.time(), attempt=attempt)


def running_attempt(number: int = 1, *, resumed_step: int = 0, started_unix_s: float = 1000.0) -> AttemptRecord:
    """An attempt of the sample job that has made its first step, one second after its start."""
    first_step_unix_s = started_unix_s + 1
    return AttemptRecord(
        number=number,
        num_nodes=2,
        num_devices=2,
        started_unix_s=started_unix_s,
        first_step_unix_s=first_step_unix_s,
        last_step_unix_s=first_step_unix_s,
        ended_unix_s=None,
        resumed_step=resumed_step,
        last_step=resumed_step + 1,
        resumable_step=resumed_step,
        cause=None,
        text="",
    )


def ended_attempt(
    number: int = 1,
    *,
    last_step: int = 41,
    resumable_step: int = 40,
    cause: str = "failure",
    text: str = "node 0, rank 1: it was killed by SIGKILL.",
    save: SaveRecord | None = None,
) -> AttemptRecord:
    """The sample job's first attempt after steps of 0.125 s each."""
    last_step_unix_s = 1001.0 + (last_step - 1) * 0.125
    return AttemptRecord(
        number=number,
        num_nodes=2,
        num_devices=2,
        started_unix_s=1000.0,
        first_step_unix_s=1001.0,
        last_step_unix_s=last_step_unix_s,
        ended_unix_s=last_step_unix_s,
        resumed_step=0,
        last_step=last_step,
        resumable_step=resumable_step,
        cause=cause,  # type: ignore[arg-type]
        text=text,
        save=save,
    )
