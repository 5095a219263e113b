"""Notices of Azure: Scheduled Events that name this virtual machine.

https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any

from periflow_ray.runtime.notices.metadata import PROBE_TIMEOUT_S, REQUEST_TIMEOUT_S, MetadataClient
from periflow_ray.runtime.notices.notice import MetadataError, Notice, shown, take_first_new

EVENTS_PATH = "/metadata/scheduledevents?api-version=2020-07-01"
NAME_PATH = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
# The first request of a machine switches Scheduled Events on for it; Azure says that this may take two minutes.
FIRST_REQUEST_TIMEOUT_S = 120.0
# Preempt: 30 s or more for a spot machine. Terminate: 5 to 15 minutes for a machine that its scale set deletes.
ENDING_EVENTS = {"Preempt": "takes this spot VM back", "Terminate": "deletes this VM"}
PASSING_EVENTS = {"Freeze": "pauses this VM", "Reboot": "restarts this VM", "Redeploy": "moves this VM"}
_HEADERS = {"Metadata": "true"}


class AzureSource:
    """At least 30 s of notice, so asked every second; the acknowledged machine goes, and costs nothing, at once.

    Args:
        timeout_s: of one request.
    """

    cloud_name = "Azure"
    interval_s = 1.0

    def __init__(self, endpoint: str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._client = MetadataClient(endpoint, timeout_s)
        self._vm_name: str | None = None
        self._has_asked_for_events = False
        self._returned_ids: set[str] = set()

    def is_present(self) -> bool:
        try:
            self._vm_name = self._read_vm_name(PROBE_TIMEOUT_S)
        except MetadataError:
            return False
        return True

    def poll(self) -> Notice | None:
        notices = sorted(self._read_notices(), key=lambda notice: notice.kind != "preemption")
        return take_first_new(notices, self._returned_ids)

    def acknowledge(self, notice: Notice) -> None:
        if not notice.is_acknowledgeable:
            return
        body = json.dumps({"StartRequests": [{"EventId": notice.notice_id}]})
        headers = {**_HEADERS, "Content-Type": "application/json"}
        answer = self._client.request("POST", EVENTS_PATH, headers=headers, body=body)
        self._client.expect_ok(answer, EVENTS_PATH)

    def _read_notices(self) -> Iterator[Notice]:
        if self._vm_name is None:
            self._vm_name = self._read_vm_name()
        for event in self._read_events():
            names = event.get("Resources")
            names = {str(name).casefold() for name in names} if isinstance(names, list) else set()
            if self._vm_name.casefold() not in names:
                continue
            notice = _describe_event(event, is_only_machine=len(names) == 1)
            if notice is not None:
                yield notice

    def _read_vm_name(self, timeout_s: float | None = None) -> str:
        answer = self._client.request("GET", NAME_PATH, headers=_HEADERS, timeout_s=timeout_s)
        name = self._client.expect_ok(answer, NAME_PATH).strip()
        if not name:
            raise MetadataError(f"{NAME_PATH}: an empty name")
        return name

    def _read_events(self) -> list[dict[str, Any]]:
        timeout_s = None if self._has_asked_for_events else FIRST_REQUEST_TIMEOUT_S
        self._has_asked_for_events = True
        answer = self._client.request("GET", EVENTS_PATH, headers=_HEADERS, timeout_s=timeout_s)
        text = self._client.expect_ok(answer, EVENTS_PATH)
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as err:
            raise MetadataError(f"{EVENTS_PATH}: not JSON: {text[:100]!r}") from err
        events = document.get("Events") if isinstance(document, dict) else None
        if not isinstance(events, list):
            raise MetadataError(f"{EVENTS_PATH}: no list of Events in {text[:100]!r}")
        return [event for event in events if isinstance(event, dict)]


def _describe_event(event: dict[str, Any], *, is_only_machine: bool) -> Notice | None:
    """The notice of an event for this machine; None for a type that does not concern it."""
    event_type, event_id = str(event.get("EventType")), str(event.get("EventId"))
    stated = str(event.get("NotBefore") or "")
    when = f"not before {shown(stated)}" if stated else "at any moment"
    if event_type in ENDING_EVENTS:
        return Notice(
            kind="preemption",
            deadline_unix_s=_parse_time(stated),
            notice_id=event_id,
            text=f"Azure {ENDING_EVENTS[event_type]} {when} (event: {event_type})",
            # Azure starts an acknowledged event for all machines that it names, and the others may still be saving.
            is_acknowledgeable=is_only_machine,
        )
    if event_type in PASSING_EVENTS:
        return Notice(
            kind="warning",
            deadline_unix_s=_parse_time(stated),
            notice_id=event_id,
            text=f"Azure {PASSING_EVENTS[event_type]} {when} (event: {event_type})",
        )
    return None


def _parse_time(stated: str) -> float | None:
    """Unix seconds of a time like Mon, 19 Sep 2026 18:29:47 GMT; None for anything else."""
    try:
        moment = parsedate_to_datetime(stated)
    except (TypeError, ValueError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
