"""A node is taken away with notice."""

from __future__ import annotations

import random

from chaos_run.events.event import Event
from chaos_run.training import Training

LONG_NOTICE_S = 30
SHORT_NOTICE_S = 2


def _give_notice(training: Training, chance: random.Random) -> str:
    number = training.attempts()[-1].number
    node = chance.randrange(training.attempts()[-1].num_nodes)
    drill = training.run("job", "drill", training.job_id, "--notice", f"{LONG_NOTICE_S}s", "--node", node)
    assert drill.exit_code == 0, drill
    attempts = {attempt.number: attempt for attempt in training.attempts()}
    announced, resumed = attempts[number], attempts[number + 1]
    assert (announced.cause, announced.last_step) == ("preemption", resumed.resumed_step), (
        f"a notice of {LONG_NOTICE_S} s cost steps: {announced}, then {resumed}"
    )
    training.restore_machines()
    return f"node {node}, saved at step {resumed.resumed_step}"


def _give_short_notice(training: Training, chance: random.Random) -> str:
    node = chance.randrange(training.attempts()[-1].num_nodes)
    drill = training.run("job", "drill", training.job_id, "--notice", f"{SHORT_NOTICE_S}s", "--node", node)
    training.restore_machines()
    return f"node {node}, exit code {drill.exit_code}"


EVENTS = [
    Event("notice", _give_notice, needs_quiet=True),
    Event("short notice", _give_short_notice, needs_quiet=True),
]
