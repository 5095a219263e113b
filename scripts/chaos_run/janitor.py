"""Tidies up after a run, however it ended: kills what is left of it, unmounts its disk, removes its directory.

    python -m chaos_run.janitor DIRECTORY

Its standard input is a pipe from the run, which closes when the run dies.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

from support.workbench import processes_with

GRACE_S = 20.0


@contextlib.contextmanager
def tidy_directory() -> Iterator[Path]:
    """A directory for a run; at the end, or when this process is killed, it goes with every process that names it."""
    # Short, because Ray's sockets lie below it.
    directory = Path(mkdtemp(prefix="pf-"))
    with subprocess.Popen(
        [sys.executable, "-m", "chaos_run.janitor", str(directory)], stdin=subprocess.PIPE, start_new_session=True
    ):
        yield directory


def main() -> None:
    """Wait for the run's end, then tidy up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    directory = sys.argv[1]
    sys.stdin.buffer.read()
    # The keepers of its machines end them; who is left then has lost its keeper.
    end_s = time.monotonic() + GRACE_S
    while left := processes_with(directory):
        if time.monotonic() > end_s:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    if os.path.ismount(f"{directory}/disk"):
        subprocess.run(["umount", "-l", f"{directory}/disk"], check=False)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
