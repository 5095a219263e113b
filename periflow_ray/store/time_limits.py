"""How long a server may take to answer."""

from __future__ import annotations

import os

from periflow_ray.errors import UsageError

TIMEOUT_VARIABLE = "PERIFLOW_STORAGE_TIMEOUT_S"
_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 30.0
# An operation may take as long again for each of these that it moves.
_BYTES_PER_TIMEOUT = 1 << 20


def read_timeout(default_s: float = _READ_TIMEOUT_S) -> float:
    """Seconds that a server may take to answer: ``PERIFLOW_STORAGE_TIMEOUT_S``, else the default.

    Raises:
        UsageError: ``PERIFLOW_STORAGE_TIMEOUT_S`` is not a positive number.
    """
    text = os.environ.get(TIMEOUT_VARIABLE)
    if not text:
        return default_s
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = 0.0
    if not 0 < timeout_s < float("inf"):
        raise UsageError(f"{TIMEOUT_VARIABLE} is '{text}'; it must be a number of seconds above 0, for example 60.")
    return timeout_s


def connect_timeout(read_timeout_s: float) -> float:
    """Seconds that a server may take to accept a connection, never more than it may take to answer."""
    return min(_CONNECT_TIMEOUT_S, read_timeout_s)


def time_limit(num_bytes: int) -> float:
    """Seconds that an operation which moves this many bytes may take before it counts as hanging.

    The clients' own timeouts do not see a server that stops reading what is sent to it.
    """
    timeout_s = read_timeout()
    return connect_timeout(timeout_s) + timeout_s * (1 + num_bytes / _BYTES_PER_TIMEOUT)
