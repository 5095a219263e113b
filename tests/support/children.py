"""The child processes of this one, without a look at all processes of the machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

EXIT_DEADLINE_S = 10.0
# multiprocessing keeps these for the life of the interpreter.
TOLERATED_COMMANDS = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")
_kept_pids: set[int] = set()


def keep_child(pid: int) -> None:
    """Let a child outlive the test that starts it, because a fixture of more than one test ends it."""
    _kept_pids.add(pid)


def find_child_pids() -> set[int]:
    """Direct children of this process, also of its other threads, and dead ones that nobody has waited for."""
    seen = _read_child_pids()
    # The kernel may skip a child while another one ends, so only what is read twice counts.
    while (again := _read_child_pids()) != seen:
        seen = again
    return seen


def wait_for_new_children(before: set[int], deadline_s: float = EXIT_DEADLINE_S) -> dict[int, str]:
    """Wait until the children have ended that are neither among ``before`` nor to be kept.

    Returns:
        Ids and command lines of those that live on at the deadline.
    """
    end_s = time.monotonic() + deadline_s
    while True:
        left = _describe_living(find_child_pids() - before - _kept_pids)
        if not left or time.monotonic() > end_s:
            return left
        time.sleep(0.02)


def _read_child_pids() -> set[int]:
    while True:
        try:
            lists = [Path(f"/proc/self/task/{thread}/children").read_text() for thread in os.listdir("/proc/self/task")]
        except OSError:  # A thread has ended; its children are another thread's now.
            own = Path(f"/proc/self/task/{os.getpid()}/children")
            assert own.exists(), f"without {own} (CONFIG_PROC_CHILDREN of the kernel), no leaked process is found"
            continue
        return {int(pid) for pids in lists for pid in pids.split()}


def _describe_living(pids: set[int]) -> dict[int, str]:
    """Ids and command lines of the processes that live and are not tolerated."""
    found = {}
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:  # It has ended.
            continue
        if state != b"Z" and not any(name in command for name in TOLERATED_COMMANDS):
            found[pid] = command.decode(errors="replace").strip()
    return found
