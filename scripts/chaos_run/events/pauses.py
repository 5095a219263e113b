"""SIGSTOP of a process of the job, and SIGCONT seconds later."""

from __future__ import annotations

import random
import signal
import time

from chaos_run.events.event import Event
from chaos_run.events.kills import find_victim, send
from chaos_run.training import Training

KINDS = ("rank", "agent", "monitor", "driver")
PAUSES_S = (0.5, 10.0)


def _pause(kind: str) -> Event:
    def act(training: Training, chance: random.Random) -> str:
        pid = find_victim(training, chance, kind)
        pause_s = chance.uniform(*PAUSES_S)
        send(pid, signal.SIGSTOP)
        try:
            time.sleep(pause_s)
        finally:
            send(pid, signal.SIGCONT)
        return f"process {pid} for {pause_s:.1f} s"

    return Event(f"pause {kind}", act)


EVENTS = [_pause(kind) for kind in KINDS]
