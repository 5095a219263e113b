"""Runs a function of this package in a process beside a Ray worker, which it outlives.

    python -I beside.py TITLE    (standard input: {"path": sys.path, "module": ..., "function": ...} in one line)

Ray kills the direct children of a worker that it ends, so the function runs in a child of this program; the program
itself only waits for it, so that a dead one is nobody's zombie. The function may read the rest of standard input. Only
the standard library is imported before it. TITLE is for those who look at the list of processes.
"""

import importlib
import json
import os
import signal
import sys


def main() -> None:
    """Run the function in a child, and end with it."""
    # A signal to a whole group, as Ctrl-C in a terminal, is not meant for this one.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if child := os.fork():
        os.waitpid(child, 0)
        os._exit(0)
    task = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = task["path"]
    getattr(importlib.import_module(task["module"]), task["function"])()


if __name__ == "__main__":
    main()
