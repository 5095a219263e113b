"""Runs Ray's cluster launcher for a configuration that leaves nothing to it but machines, and says how far it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from periflow_ray.cluster.providers.provider import ProviderError
from periflow_ray.errors import ClusterError

# In Ray's output, and what they mean to whoever waits.
_PHASES = {
    "Acquiring an up-to-date head node": "launching the head",
    "Waiting for SSH to become available": "the head boots",
    "Processing file mounts": "copying files to the head",
    "Running setup commands": "installing periflow-ray on the head",
    "Running post-setup commands": "installing periflow-ray on the head",
    "Starting the Ray runtime": "starting Ray on the head",
}
# An IAM role that EC2 does not know yet; some seconds later it does.
_NOT_YET = ("Invalid IAM Instance Profile", "iamInstanceProfile")
# As Ray, boto3 and Azure's SDK word it.
_CODE = re.compile(
    r"Node Launch Exception \((?P<ray_code>[\w.]+)\): (?P<ray_text>.*)"
    r"|An error occurred \((?P<aws_code>[\w.]+)\) when calling the \w+ operation(?: \([^)]*\))?: (?P<aws_text>.*)"
    r"|Code: (?P<azure_code>\w+)\s+Message: (?P<azure_text>.*)"
)
# From here on, what fails is its setup.
_LAUNCHED = "Launched a new head node"
_NUM_TRIES = 4
_PAUSE_S = 8.0
_NUM_LINES = 15


def launch_head(config_path: Path, log_path: Path, tell: Callable[[str], None]) -> None:
    """Launch a cluster's head and set it up, or go on with one that is there.

    Args:
        log_path: gets all of Ray's own output.
        tell: gets each phase when it begins.
    Raises:
        ProviderError: the provider refused the machine; ``code`` is its word for why.
        ClusterError: it could not be set up.
    """
    for attempt in range(1, _NUM_TRIES + 1):
        lines, exit_code = _run(config_path, log_path, tell)
        if exit_code == 0:
            return
        output = "\n".join(lines)
        if attempt == _NUM_TRIES or not any(words in output for words in _NOT_YET):
            break
        tell("waiting until EC2 knows the new roles")
        time.sleep(_PAUSE_S)
    refusals = [] if _LAUNCHED in output else list(_CODE.finditer(output))
    if refusals:
        code, text = (words for words in refusals[-1].groups() if words is not None)
        raise ProviderError(f"the provider refused the head: {code}: {text.strip()}", code)
    words = "".join(f"\n  {line}" for line in lines[-_NUM_LINES:])
    raise ClusterError(f"the head could not be set up (all of it: {log_path}):{words}")


def _run(config_path: Path, log_path: Path, tell: Callable[[str], None]) -> tuple[list[str], int]:
    command = [sys.executable, "-m", "periflow_ray.runtime.ray_up", "--yes", "--no-config-cache", str(config_path)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    lines, phase = [], ""
    with (
        open(log_path, "w", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
        ) as launcher,
    ):
        assert launcher.stdout is not None
        for line in launcher.stdout:
            log.write(line)
            log.flush()
            if line.strip():
                lines.append(line.rstrip())
            found = next((meaning for words, meaning in _PHASES.items() if words in line), phase)
            if found != phase:
                phase = found
                tell(phase)
        return lines, launcher.wait()
