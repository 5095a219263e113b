"""The storage errs, hangs, resets connections, answers out of order, is full, or cannot be written."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from collections.abc import Callable

from support.fault_proxy import Fault

from chaos_run.events.event import Event
from chaos_run.training import Training

FAULT_S = (2.0, 10.0)
FAULTS: tuple[Fault, ...] = (
    "answer_500",
    "answer_503",
    "reset_after_forwarding",
    "cut_request",
    "cut_response",
    "hang",
)
MAX_DELAY_S = 1.0


def _fail_requests(fault: Fault) -> Event:
    def act(training: Training, chance: random.Random) -> str:
        assert training.storage.proxy is not None
        duration_s = chance.uniform(*FAULT_S)
        training.storage.proxy.plan(fault, at_request=1, lasts="all_requests")
        try:
            time.sleep(duration_s)
            num_requests = training.storage.proxy.num_requests
        finally:
            training.storage.proxy.plan_none()
        return f"{num_requests} requests in {duration_s:.1f} s"

    return Event(f"storage: {fault.replace('_', ' ')}", act, storages=("S3",))


def _reorder(training: Training, chance: random.Random) -> str:
    assert training.storage.proxy is not None
    duration_s = chance.uniform(*FAULT_S)
    training.storage.proxy.max_delay_s = MAX_DELAY_S
    try:
        time.sleep(duration_s)
    finally:
        training.storage.proxy.max_delay_s = 0.0
    return f"each request up to {MAX_DELAY_S} s late, for {duration_s:.1f} s"


def _fill(training: Training, chance: random.Random) -> str:
    assert training.storage.disk is not None
    duration_s = chance.uniform(*FAULT_S)
    path = training.storage.disk / "filler"

    def take_all() -> None:
        with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    end_s = time.monotonic() + duration_s
    try:
        while time.monotonic() < end_s:
            # What retention frees is taken as well.
            take_all()
            time.sleep(0.1)
    finally:
        path.unlink(missing_ok=True)
    return f"for {duration_s:.1f} s"


def _remount(disk: str, mode: str) -> bool:
    command = ["mount", "-o", f"remount,{mode}", disk]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


def _forbid_writing(training: Training, chance: random.Random) -> str:
    assert training.storage.disk is not None
    duration_s = chance.uniform(*FAULT_S)
    # Refused as long as a file is open for writing.
    if not _try(lambda: _remount(str(training.storage.disk), "ro"), duration_s):
        return "never, it was always busy"
    try:
        time.sleep(duration_s)
    finally:
        assert _remount(str(training.storage.disk), "rw")
    return f"for {duration_s:.1f} s"


def _try(attempt: Callable[[], bool], limit_s: float) -> bool:
    end_s = time.monotonic() + limit_s
    while not attempt():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.05)
    return True


EVENTS = [
    *map(_fail_requests, FAULTS),
    Event("storage: out of order", _reorder, storages=("S3",)),
    Event("storage: full", _fill, storages=("small disk",)),
    Event("storage: read-only", _forbid_writing, storages=("small disk",)),
]
