"""The clock of a machine jumps, as far as its Python programs see it."""

from __future__ import annotations

import random

from chaos_run.events.event import Event
from chaos_run.training import Training

JUMPS_S = (-7200.0, -600.0, -30.0, 30.0, 600.0, 7200.0)


def _jump(training: Training, chance: random.Random) -> str:
    machine = chance.choice([training.cluster.head, *training.cluster.workers])
    jump_s = chance.choice(JUMPS_S)
    new_path = machine.temp_dir / "clock-offset.new"
    new_path.write_text(str(jump_s))
    new_path.rename(machine.temp_dir / "clock-offset")
    return f"{machine.name} is at {jump_s:+.0f} s"


EVENTS = [Event("jump of a clock", _jump)]
