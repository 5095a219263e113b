"""``--env``, ``--env-file`` and ``--secret``: variables that the command line adds to a job."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from periflow_ray.errors import UsageError
from periflow_ray.secret_mask import MIN_SECRET_CHARS, can_be_masked
from periflow_ray.spec.fields import describe_long_value
from periflow_ray.submit.env_file import parse_assignments

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def collect_env(assignments: Sequence[str], files: Sequence[Path], environ: Mapping[str, str]) -> dict[str, str]:
    """Merge environment files and ``K=V`` or ``K`` options; later ones win, options win over files.

    Args:
        assignments: ``K=V``, or ``K`` for its value in ``environ``.
        files: see ``parse_assignments``.
    Raises:
        UsageError: a name or a value cannot be used, a variable is not set, or a file cannot be read.
    """
    env: dict[str, str] = {}
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as err:
            raise UsageError(f"--env-file '{path}' cannot be read: {getattr(err, 'strerror', None) or err}") from err
        for number, name, value in parse_assignments(text, str(path)):
            known, value = _complete(name, value, environ, f"{path}:{number}")
            env[known] = value
    for assignment in assignments:
        known, value = _complete(*_split(assignment), environ, "--env")
        env[known] = value
    return env


def collect_secrets(names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Take secrets from this process's environment.

    Raises:
        UsageError: a value was given on the command line, where ``ps`` shows it, a variable is not set, or a value is
            too short to be hidden.
    """
    secrets = {}
    for name in names:
        if "=" in name:
            raise UsageError(
                f"--secret takes a name, not a value: export {name.split('=')[0]}=... first, then --secret "
                f"{name.split('=')[0]}. Everybody on this machine can read a value on the command line."
            )
        if name not in environ:
            raise UsageError(f"--secret: the variable '{name}' is not set here. Set it first: export {name}=...")
        if environ[name] and not can_be_masked(environ[name]):
            raise UsageError(
                f"--secret: the value of '{name}' has no line of {MIN_SECRET_CHARS} characters. Anything shorter is a "
                "part of so many words that hiding it would hide half of the log. Use a longer one, or "
                f"--env {name} if it may be read."
            )
        _check_value(name, environ[name], "--secret")
        secrets[name] = environ[name]
    return secrets


def _split(assignment: str) -> tuple[str, str | None]:
    name, has_value, value = assignment.partition("=")
    return name.strip(), value if has_value else None


def _complete(name: str, value: str | None, environ: Mapping[str, str], where: str) -> tuple[str, str]:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{where}: '{name}' is not a variable name (letters, digits and '_', not first a digit).")
    if value is None:
        if name not in environ:
            raise UsageError(f"{where}: the variable '{name}' is not set here. Set it, or give a value: {name}=VALUE")
        value = environ[name]
    _check_value(name, value, where)
    return name, value


def _check_value(name: str, value: str, where: str) -> None:
    problem = "has a NUL character, which no variable can have" if "\0" in value else describe_long_value(value)
    if problem is not None:
        raise UsageError(f"{where}: the value of '{name}' {problem}.")
