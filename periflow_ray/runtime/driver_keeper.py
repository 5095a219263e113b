"""What Ray Jobs starts for a command job: keeps the job's driver running. Imports nothing heavy.

    python -m periflow_ray.runtime.driver_keeper --storage URI [--storage-credential NAME] --job-id N

A driver that is killed is started again and goes on with the job from its latest committed checkpoint; its workers end
with it. One that ends by itself has said how the job stands, and its exit code is this program's. If the keeper is
killed, its driver gets a SIGTERM: Ray takes the job for over then, so it saves and ends.

The key of the job's secrets comes as a variable of the Ray job where no file can carry it. Ray gives such variables to
all workers of a job, and they to the user's processes; so it is taken out of what Ray will be told, and only the driver
gets it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import MutableMapping
from pathlib import Path
from types import FrameType

from periflow_ray.private_files import create_private

# A driver that lives longer than this did some work: the count of quick deaths begins anew.
LONG_LIFE_S = 60.0
MAX_QUICK_DEATHS = 3
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
# As credentials.cloud_environment and jobs.sealed_secrets have them; not imported, because that would cost this process
# 50 MB.
_CLOUD_ENVIRONMENT_VARIABLE = "PERIFLOW_CLOUD_ENV_FILE"
_SECRETS_KEY_VARIABLE = "PERIFLOW_SECRETS_KEY"
# From its text the driver's ray.init makes the runtime environment of the job's workers (ray/_private/worker.py).
_RAY_JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


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
    driver_env = take_secrets_key(os.environ)
    num_quick_deaths = 0
    while True:
        cloud_file.put_back()
        began_s = time.monotonic()
        argv = [sys.executable, "-m", "periflow_ray.runtime.driver", *sys.argv[1:]]
        driver = subprocess.Popen(argv, env={**os.environ, **driver_env}, preexec_fn=_end_with_this_process)
        if is_stopping:  # The signal came when there was no driver to hand it to.
            driver.send_signal(signal.SIGTERM)
        exit_code = driver.wait()
        num_quick_deaths = 1 if time.monotonic() - began_s > LONG_LIFE_S else num_quick_deaths + 1
        if exit_code >= 0 or is_stopping or num_quick_deaths > MAX_QUICK_DEATHS:
            cloud_file.remove()
            return exit_code if exit_code >= 0 else 128 - exit_code
        print(f"the job's driver was killed by signal {-exit_code}; starting it again", file=sys.stderr, flush=True)


def take_secrets_key(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Remove the key of the secrets from an environment, and from the job's configuration in it.

    Returns:
        The key as a variable; empty if there is none.
    """
    config = json.loads(environ.get(_RAY_JOB_CONFIG_VARIABLE, "{}"))
    workers_env = (config.get("runtime_env") or {}).get("env_vars") or {}
    if workers_env.pop(_SECRETS_KEY_VARIABLE, None) is not None:
        environ[_RAY_JOB_CONFIG_VARIABLE] = json.dumps(config)
    key = environ.pop(_SECRETS_KEY_VARIABLE, None)
    return {} if key is None else {_SECRETS_KEY_VARIABLE: key}


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
