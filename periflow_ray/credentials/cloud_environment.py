"""Variables of the submitting shell and the key of the secrets on their way to a driver of the embedded cluster.

The cluster may have been started by another shell, so the driver's own variables are that one's. They travel in a file
of mode 0600, of which the driver's environment has only the path: Ray writes the variables of a job into its logs.

The job's command gets all variables of the shell; the job's own processes take over the cloud variables alone.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from periflow_ray.credentials.credential_types import CREDENTIAL_TYPES
from periflow_ray.credentials.stored import CREDENTIALS_FILE_VARIABLE, credentials_path
from periflow_ray.errors import StorageError
from periflow_ray.private_files import create_private, make_private_directories

CLOUD_ENVIRONMENT_VARIABLE = "PERIFLOW_CLOUD_ENV_FILE"

_PREFIXES = tuple(prefix for each in CREDENTIAL_TYPES.values() for prefix in each.variable_prefixes)
# Relative to the shell's directory, which is not the driver's.
_PATH_VARIABLES = frozenset(name for each in CREDENTIAL_TYPES.values() for name in each.path_variables)


def write_shell_environment(
    directory: Path, environ: Mapping[str, str], driver_variables: Mapping[str, str] | None = None
) -> Path:
    """Write a shell's variables and the path of its credentials file into a new file that only this user reads.

    Args:
        directory: where to put it; created with mode 0700.
        environ: the shell's variables.
        driver_variables: what the driver gets beside them, and no other process of the job.
    Returns:
        The file, for ``PERIFLOW_CLOUD_ENV_FILE`` of the driver.
    """
    shell = {name: _absolute(name, value) for name, value in environ.items()}
    shell[CREDENTIALS_FILE_VARIABLE] = str(credentials_path())
    make_private_directories(directory)
    path = directory / f"{uuid.uuid4().hex}.json"
    # A variable may be any bytes, which are surrogates in text.
    create_private(path, json.dumps({"shell": shell, "driver": dict(driver_variables or {})}).encode())
    return path


def read_shell_environment() -> dict[str, str]:
    """Put the submitting shell's cloud variables and the driver's own into this process's environment; delete the file.

    To be called first of all by the driver, once. Cloud variables that the shell did not have are removed, so that the
    shell's account is used and not a mixture of two. Without ``PERIFLOW_CLOUD_ENV_FILE`` nothing happens.

    Returns:
        All variables of the shell, for the command, and for ``set_cloud_environment`` in the job's other processes on
        this machine; empty without a file.
    Raises:
        StorageError: the file is gone or damaged.
    """
    given = os.environ.pop(CLOUD_ENVIRONMENT_VARIABLE, None)
    if given is None:
        return {}
    path = Path(given)
    try:
        text = path.read_text(encoding="utf-8")
        path.unlink()
        variables = json.loads(text)
        shell: dict[str, str] = variables["shell"]
        driver: dict[str, str] = variables["driver"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise StorageError(
            f"the variables of the submitting shell cannot be read from '{path}' ({type(err).__name__}). "
            "Submit the job again."
        ) from None
    set_cloud_environment(shell)
    os.environ.update(driver)
    return shell


def set_cloud_environment(shell: Mapping[str, str]) -> None:
    """Replace this process's cloud variables by those of a shell; empty changes nothing.

    Args:
        shell: what ``read_shell_environment`` gave.
    """
    if not shell:
        return
    for name in [name for name in os.environ if is_cloud_variable(name)]:
        del os.environ[name]
    os.environ.update({name: value for name, value in shell.items() if is_cloud_variable(name)})


def is_cloud_variable(name: str) -> bool:
    """Whether a variable is one of a cloud's, by which its libraries find their keys."""
    return name.startswith(_PREFIXES) or name == CREDENTIALS_FILE_VARIABLE


def _absolute(name: str, value: str) -> str:
    # The libraries themselves replace the ~.
    is_relative = name in _PATH_VARIABLES and value and not value.startswith(("/", "~"))
    return os.path.abspath(value) if is_relative else value
