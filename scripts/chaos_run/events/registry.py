"""All events, in an order that does not change: a seed stands for a schedule."""

from __future__ import annotations

from collections.abc import Collection

from chaos_run.events import clocks, commands, connections, damage, kills, notices, pauses, storage_faults
from chaos_run.events.event import Event

EVENTS: dict[str, Event] = {
    event.name: event
    for module in (kills, pauses, commands, notices, storage_faults, damage, connections, clocks)
    for event in module.EVENTS
}


def names_for(storage: str, only: Collection[str] = ()) -> list[str]:
    """Events that a kind of storage can have, and of these perhaps only some."""
    return [
        event.name
        for event in EVENTS.values()
        if (not event.storages or storage in event.storages) and (not only or event.name in only)
    ]
