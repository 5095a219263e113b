"""Connections of the monitor are cut from outside, while both processes live."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import socket

from chaos_run.events.event import Event
from chaos_run.events.kills import find_victim
from chaos_run.training import Training

# The same number on all of Linux's architectures; since Linux 5.6.
_SYS_PIDFD_GETFD = 438


def _cut(training: Training, chance: random.Random) -> str:
    monitor = find_victim(training, chance, "monitor")
    return f"{cut_connections(monitor)} of process {monitor}"


def cut_connections(pid: int) -> int:
    """Shut down all TCP connections of a process; returns how many there were."""
    libc = ctypes.CDLL(None, use_errno=True)
    num_cut = 0
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        process = os.pidfd_open(pid)
        try:
            for name in os.listdir(f"/proc/{pid}/fd"):
                copied = libc.syscall(_SYS_PIDFD_GETFD, process, int(name), 0)
                if copied >= 0:
                    num_cut += _shut_down(copied)
        finally:
            os.close(process)
    return num_cut


def _shut_down(descriptor: int) -> int:
    """Whether it was a TCP connection; closes the descriptor, which is a copy."""
    try:
        connection = socket.socket(fileno=descriptor)
    except OSError:  # No socket.
        os.close(descriptor)
        return 0
    with connection, contextlib.suppress(OSError):
        if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.getpeername():
            connection.shutdown(socket.SHUT_RDWR)
            return 1
    return 0


EVENTS = [Event("cut monitor's connections", _cut)]
