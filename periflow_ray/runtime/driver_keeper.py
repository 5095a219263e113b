"""What Ray Jobs starts for a command job: keeps the job's driver running. Imports nothing heavy.

    python -m periflow_ray.runtime.driver_keeper --storage URI [--storage-credential NAME] --job-id N

A driver that is killed is started again and goes on with the job from its latest committed checkpoint; its workers end
with it. One that ends by itself has said how the job stands, and its exit code is this program's. If the keeper is
killed, its driver gets a SIGTERM: Ray takes the job for over then, so it saves and ends.

What the first driver was told of the job's secrets, the next one must know as well: whoever told it may have gone. The
key goes back and forth on a socket, and not in a variable, which other processes of this user could read.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from periflow_ray.private_files import create_private

# A driver that lives longer than this did some work: the count of quick deaths begins anew.
LONG_LIFE_S = 60.0
MAX_QUICK_DEATHS = 3
# Tells a driver that it is not the job's first one.
AGAIN_OPTION = "--again"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
# As credentials.cloud_environment has it; not imported, because that would cost this process 50 MB.
_CLOUD_ENVIRONMENT_VARIABLE = "PERIFLOW_CLOUD_ENV_FILE"
_LINE_VARIABLE = "PERIFLOW_KEEPER_FD"
_MAX_KEY_BYTES = 4096


def main() -> int:
    """Run the driver until it has ended by itself; returns its exit code."""
    is_stopping = False
    driver: subprocess.Popen[bytes] | None = None

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal is_stopping
        is_stopping = True
        if driver is not None:
            driver.send_signal(signum)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    cloud_file = _CloudFile(os.environ.get(_CLOUD_ENVIRONMENT_VARIABLE))
    key = b""
    num_quick_deaths = 0
    argv = [sys.executable, "-m", "periflow_ray.runtime.driver", *sys.argv[1:]]
    while True:
        cloud_file.put_back()
        began_s = time.monotonic()
        line, its_end = socket.socketpair()
        line.sendall(key + b"\n")
        its_fd = its_end.fileno()
        driver = subprocess.Popen(
            argv,
            env={**os.environ, _LINE_VARIABLE: str(its_fd)},
            pass_fds=(its_fd,),
            preexec_fn=_end_with_this_process,
        )
        its_end.close()
        if is_stopping:  # The signal came when there was no driver to hand it to.
            driver.send_signal(signal.SIGTERM)
        exit_code = driver.wait()
        key = _take_key(line) or key
        line.close()
        num_quick_deaths = 1 if time.monotonic() - began_s > LONG_LIFE_S else num_quick_deaths + 1
        if exit_code >= 0 or is_stopping or num_quick_deaths > MAX_QUICK_DEATHS:
            cloud_file.remove()
            return exit_code if exit_code >= 0 else 128 - exit_code
        print(f"the job's driver was killed by signal {-exit_code}; starting it again", file=sys.stderr, flush=True)
        if AGAIN_OPTION not in argv:
            argv.append(AGAIN_OPTION)


class KeeperLine:
    """The driver's end of the line to its keeper; without a keeper nobody is there."""

    def __init__(self, line: socket.socket | None) -> None:
        self._line = line

    @classmethod
    def open(cls) -> KeeperLine:
        """Once in a driver: no other process learns of the line."""
        given = os.environ.pop(_LINE_VARIABLE, None)
        return cls(None if given is None else socket.socket(fileno=int(given)))

    def __enter__(self) -> KeeperLine:
        return self

    def __exit__(self, *error: object) -> None:
        if self._line is not None:
            self._line.close()

    def read_key(self) -> str:
        """What an earlier driver kept; empty if there was none."""
        if self._line is None:
            return ""
        return self._line.recv(_MAX_KEY_BYTES).decode().strip()

    def keep_key(self, key: str) -> None:
        """Leave the key of the secrets for the next driver."""
        if self._line is not None:
            self._line.sendall(key.encode())


def _take_key(line: socket.socket) -> bytes:
    """What a driver that has ended left; all of it is there already."""
    line.setblocking(False)
    with contextlib.suppress(OSError):
        return line.recv(_MAX_KEY_BYTES).strip()
    return b""


def _end_with_this_process() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class _CloudFile:
    """The submitting shell's cloud variables and secrets' key; a driver deletes the file when it has read it."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._content = self._path.read_bytes() if self._path is not None and self._path.exists() else None

    def put_back(self) -> None:
        if self._path is None or self._content is None or self._path.exists():
            return
        create_private(self._path, self._content)

    def remove(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
