"""What Ray Jobs starts for a command job: keeps the job's driver running. Imports nothing heavy.

    python -m periflow_ray.runtime.driver_keeper --storage URI [--storage-credential NAME] --job-id N

A driver that is killed is started again and goes on with the job from its latest committed checkpoint; its workers end
with it. One that ends by itself has said how the job stands, and its exit code is this program's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

# A driver that lives longer than this did some work: the count of quick deaths begins anew.
LONG_LIFE_S = 60.0
MAX_QUICK_DEATHS = 3
# As store.cloud_environment has it; not imported, because that would cost this process 50 MB.
_CLOUD_ENVIRONMENT_VARIABLE = "PERIFLOW_CLOUD_ENV_FILE"


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
    num_quick_deaths = 0
    while True:
        cloud_file.put_back()
        began_s = time.monotonic()
        driver = subprocess.Popen([sys.executable, "-m", "periflow_ray.runtime.driver", *sys.argv[1:]])
        if is_stopping:  # The signal came when there was no driver to hand it to.
            driver.send_signal(signal.SIGTERM)
        exit_code = driver.wait()
        num_quick_deaths = 1 if time.monotonic() - began_s > LONG_LIFE_S else num_quick_deaths + 1
        if exit_code >= 0 or is_stopping or num_quick_deaths > MAX_QUICK_DEATHS:
            cloud_file.remove()
            return exit_code if exit_code >= 0 else 128 - exit_code
        print(f"the job's driver was killed by signal {-exit_code}; starting it again", file=sys.stderr, flush=True)


class _CloudFile:
    """The submitting shell's cloud variables, which a driver deletes when it has read them."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._content = self._path.read_bytes() if self._path is not None and self._path.exists() else None

    def put_back(self) -> None:
        if self._path is None or self._content is None or self._path.exists():
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(self._content)

    def remove(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
