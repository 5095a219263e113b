"""Damaged files in committed checkpoints."""

from __future__ import annotations

import random
import signal

from chaos_run.events.event import Event
from chaos_run.events.kills import find_victim, send
from chaos_run.training import Training
from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.store.checkpoints import Manifest, checkpoint_key
from periflow_ray.store.root import StorageRoot


def _damage_newest(training: Training, chance: random.Random) -> str:
    committed = list(training.committed().values())
    # One that is good is left.
    if len(committed) < 2 or committed[-2].checkpoint in training.damaged:
        return "nothing: there is only one good checkpoint"
    newest = committed[-1]
    training.damaged.add(newest.checkpoint)
    training.lost_on_purpose.add(training.attempts()[-1].number)
    said = _damage(training.root, newest, chance)
    send(find_victim(training, chance, "rank"), signal.SIGKILL)
    return f"{said}, and a rank killed"


def _damage(root: StorageRoot, manifest: Manifest, chance: random.Random) -> str:
    """Change a byte of a file, or cut it, or delete it."""
    file = chance.choice(sorted(manifest.files, key=lambda file: file.key))
    key = checkpoint_key(manifest.job_id, manifest.checkpoint, file.key)
    how = chance.choice(("changed", "cut", "deleted"))
    try:
        if how == "deleted":
            root.delete(key)
        else:
            content = bytearray(root.read_bytes(key))
            position = chance.randrange(len(content))
            content[position] ^= 1
            root.write_bytes(key, bytes(content if how == "changed" else content[:position]))
    except (NotFoundError, OSError, StorageError) as err:
        return f"{key} is gone already ({type(err).__name__})"
    return f"{key} {how}"


EVENTS = [Event("damage newest checkpoint", _damage_newest, needs_quiet=True)]
