"""The process between a member and the user's command; it sees to it that nothing of the command survives.

Run as a script with a bare interpreter (standard library only, so that it starts in milliseconds):

    python -I keeper.py RESULT_FD GRACE_S FINISH COMMAND [ARG ...]

It makes itself the "child subreaper": every orphaned descendant of the command becomes its child, so none can hide
by starting a session of its own, as torchrun's workers do. Its standard input is a pipe from the member: a line
``terminate [GRACE_S]`` asks it to end the command, end-of-file means that the member is dead and does the same. When
the command has ended and nothing of it is left, or what is left cannot be ended, the keeper writes one JSON line to the
file descriptor RESULT_FD: ``{"exit_code": int | null, "signal": int | null, "peak_memory_bytes": int, "left":
[description, ...]}``. Orphans are waited for as soon as they end, so that none stays a zombie while the command runs.

FINISH is a JSON list, mostly an empty one. Otherwise the command is the client of something that does not run below it,
such as a container: SIGTERM goes to the client alone, which passes it on, and when the client has ended, or the grace
time is over, the program FINISH has to end the rest.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.02
# A process that holds a GPU or a network disk may take seconds to die; one of another user never does.
KILL_TIMEOUT_S = 15.0
_REAP_TIMEOUT_S = 1.0
# An engine that has much to do takes seconds to end a container; one that is stuck never does.
FINISH_TIMEOUT_S = 60.0
_MAX_COMMAND_CHARS = 100


def main(result_fd: int, grace_s: float, finish: list[str], command: list[str]) -> None:
    """Run the command to its end, or end it when asked to or when the member dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    # Signals meant for the member's process group (Ctrl-C in a terminal) must not end the keeper before its charge.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_reset_signals(libc))
    ending = threading.Event()
    asked_grace_s: list[float] = []
    status: list[int] = []
    reaper = threading.Thread(target=_reap, args=(child.pid, status, ending), daemon=True)
    reaper.start()
    threading.Thread(target=_wait_for_member, args=(asked_grace_s, ending), daemon=True).start()
    # The command ended, the member sent a line, or its end of the pipe closed: whichever comes first.
    ending.wait()
    grace_s = asked_grace_s[0] if asked_grace_s else grace_s
    if finish:
        if not status:
            _send(child.pid, signal.SIGTERM)
            reaper_deadline = time.monotonic() + grace_s
            while not status and time.monotonic() < reaper_deadline:
                time.sleep(_POLL_S)
        run_finish(finish)
        grace_s = _REAP_TIMEOUT_S
    left = end_descendants(os.getpid(), grace_s)
    # What is left may be the command itself.
    reaper.join(_REAP_TIMEOUT_S)
    code = os.waitstatus_to_exitcode(status[0]) if status else None
    result = {
        "exit_code": code if code is not None and code >= 0 else None,
        "signal": -code if code is not None and code < 0 else None,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "left": [describe_process(pid) for pid in left],
    }
    os.write(result_fd, json.dumps(result).encode() + b"\n")
    os._exit(0)


def end_descendants(pid: int, grace_s: float, spared: Collection[int] = ()) -> list[int]:
    """SIGTERM every descendant of a process, SIGKILL after the grace time what is left.

    Args:
        spared: not these.
    Returns:
        Those that are there all the same ``KILL_TIMEOUT_S`` later: another user's, or held by the kernel (state D).
    """
    deadline = time.monotonic() + grace_s
    for descendant in find_descendants(pid):
        if descendant not in spared:
            _send(descendant, signal.SIGTERM)
    while remaining := [found for found in find_descendants(pid) if found not in spared]:
        # A killed process may have forked meanwhile, so look again until there is none.
        if time.monotonic() >= deadline:
            for descendant in remaining:
                _send(descendant, signal.SIGKILL)
        if time.monotonic() >= deadline + KILL_TIMEOUT_S:
            break
        time.sleep(_POLL_S)
    return remaining


def end_process(pid: int) -> None:
    """SIGKILL one process, if it is still there."""
    _send(pid, signal.SIGKILL)


def find_descendants(pid: int) -> list[int]:
    """Every living process below this one, nearest first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                # The command name may contain spaces and parentheses; the fields follow the last ')'.
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if state not in (b"Z", b"X"):
            children.setdefault(int(parent), []).append(int(entry))
    found = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def describe_process(pid: int) -> str:
    """A process as people look for it: ``1234 (sudo sleep 1000)``."""
    command = ""
    for name in ("cmdline", "comm"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}", "rb") as file:
            command = command or file.read().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    shown = "".join(char if char.isprintable() else "?" for char in command[:_MAX_COMMAND_CHARS])
    return f"{pid} ({shown or 'unknown'})"


def run_finish(finish: list[str]) -> None:
    """Run the program that ends what does not run below this process; not for ever."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            finish,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=FINISH_TIMEOUT_S,
            check=False,
        )


def _wait_for_member(asked_grace_s: list[float], ending: threading.Event) -> None:
    # Unbuffered, because a thread that holds the buffered reader's lock breaks the interpreter's exit.
    words = os.read(0, 64).split()
    asked_grace_s += map(float, words[1:])
    ending.set()


def _reap(command: int, status: list[int], ending: threading.Event) -> None:
    """Wait for the command and for every orphan that becomes this process's child, until there is none."""
    # Counts their memory too; and a container's first process often reaps nothing, so they would stay as zombies.
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, ended = os.waitpid(-1, 0)
            if pid == command:
                status.append(ended)
                ending.set()


def _reset_signals(libc: ctypes.CDLL) -> Callable[[], None]:
    def in_child() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    return in_child


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4:])
