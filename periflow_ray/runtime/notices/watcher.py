"""``python -m periflow_ray.runtime.notices.watcher``: runs beside Ray on every machine that its cloud may take back.

It asks the machine's metadata service for notices. On one it drains the machine's Ray node, so that jobs save in time,
and when they have saved it lets the cloud have the machine. Until then it does not import Ray: it is a small process
that sends one request every second or two. Its parent, which is as small and does nothing else, starts it again should
it end by anything but the parent's own end.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from types import FrameType
from typing import NoReturn

from periflow_ray.errors import UsageError
from periflow_ray.runtime.notices.clouds import CLOUDS, make_source
from periflow_ray.runtime.notices.departure import Watcher
from periflow_ray.runtime.notices.ray_machine import RayMachine

INTERVALS_S = (0.1, 10.0)
RESTART_INTERVAL_S = 1.0
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1
_NODE_ID = re.compile("[0-9a-f]{56}")
_ADDRESS = re.compile(r"[^\s:/]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Watch until SIGTERM or SIGINT, then exit with 0; wrong options exit with 2."""
    options = _parse_options(arguments)
    try:
        watcher = make_watcher(options, os.environ)
    except UsageError as err:
        print(f"Error: {err}", file=sys.stderr)
        sys.exit(err.exit_code)
    keep_running(lambda: _watch(watcher))


def keep_running(watch: Callable[[], None]) -> None:
    """Run an endless function in a child process, and in another one should that end; returns after a signal."""
    is_ending = False
    child = 0

    def end(signal_number: int, frame: FrameType | None) -> None:
        nonlocal is_ending
        is_ending = True
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)

    for number in _END_SIGNALS:
        signal.signal(number, end)
    while not is_ending:
        # A signal on the way to the wrong one of the two would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, _END_SIGNALS)
        child = os.fork()
        if child == 0:
            _run_as_child(watch)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _END_SIGNALS)
        exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        child = 0
        if not is_ending:
            log(f"it ended (exit code {exit_code}) without being told to; it is started again")
            time.sleep(RESTART_INTERVAL_S)


def make_watcher(options: argparse.Namespace, environment: Mapping[str, str]) -> Watcher:
    """The watcher that options and environment describe.

    Raises:
        UsageError: one of them is wrong.
    """
    shortest_s, longest_s = INTERVALS_S
    if options.interval is not None and not shortest_s <= options.interval <= longest_s:
        raise UsageError(
            f"--interval {options.interval:g}: must be from {shortest_s:g} to {longest_s:g} seconds, because some "
            "clouds give 30 s of notice"
        )
    if options.node_id is not None and not _NODE_ID.fullmatch(options.node_id):
        raise UsageError(f"--node-id {options.node_id!r}: must be a Ray node id, 56 hexadecimal digits")
    names = CLOUDS if options.cloud == "auto" else (options.cloud,)
    machine = RayMachine(_choose_address(options.address, environment), options.node_id)
    return Watcher([make_source(name, environment) for name in names], machine, log, interval_s=options.interval)


def log(text: str) -> None:
    """Write one line to stderr, whatever the text holds."""
    now = datetime.now(timezone.utc)
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    print(f"{now:%Y-%m-%d %H:%M:%S} UTC preemption watcher: {line}", file=sys.stderr, flush=True)


def _parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m periflow_ray.runtime.notices.watcher",
        description="Drain this machine's Ray node when the cloud is about to take the machine back.",
    )
    parser.add_argument("--cloud", choices=("auto", *CLOUDS), default="auto", help="whose notices; auto finds out")
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="the Ray cluster's GCS; default $RAY_ADDRESS, else the cluster that this machine has joined",
    )
    parser.add_argument("--node-id", help="the Ray node to drain; default every node at this machine's addresses")
    parser.add_argument(
        "--interval", type=float, metavar="SECONDS", help="between two requests; default 2 on AWS, 1 elsewhere"
    )
    return parser.parse_args(arguments)


def _choose_address(option: str | None, environment: Mapping[str, str]) -> str | None:
    for name, address in (("--address", option), ("RAY_ADDRESS", environment.get("RAY_ADDRESS"))):
        if address == "auto":
            return None
        if address:
            if not _ADDRESS.fullmatch(address):
                raise UsageError(f"{name} {address!r}: must be HOST:PORT of the Ray cluster's GCS, or auto")
            return address
    return None


def _run_as_child(watch: Callable[[], None]) -> NoReturn:
    exit_code = 1
    try:
        # Beside a parent that was killed nobody would end it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        for number in _END_SIGNALS:
            signal.signal(number, _end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _END_SIGNALS)
        watch()
    except SystemExit:
        exit_code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(exit_code)


def _watch(watcher: Watcher) -> None:
    try:
        watcher.run()
    finally:
        log(f"ended; {watcher.num_metadata_errors} requests to the metadata service failed")


def _end(signal_number: int, frame: FrameType | None) -> None:
    # Nothing is held that needs an orderly end, and the request that is under way may take a while.
    sys.exit(0)


if __name__ == "__main__":
    main()
