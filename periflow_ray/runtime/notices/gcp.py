"""Notices of Google Cloud: the metadata value ``instance/preempted``.

https://cloud.google.com/compute/docs/instances/create-use-preemptible#detecting_if_a_vm_was_preempted
"""

from __future__ import annotations

import time
from collections.abc import Callable

from periflow_ray.runtime.notices.metadata import PROBE_TIMEOUT_S, REQUEST_TIMEOUT_S, MetadataClient
from periflow_ray.runtime.notices.notice import MetadataError, Notice, take_first_new

PREEMPTED_PATH = "/computeMetadata/v1/instance/preempted"
# Google Cloud stops a machine this long after it set the value, and does not say when that was.
NOTICE_S = 30.0
_HEADERS = {"Metadata-Flavor": "Google"}


class GcpSource:
    """Thirty seconds of notice, so asked every second; there is nothing to acknowledge.

    Args:
        timeout_s: of one request.
        unix_s: the clock that the deadline is reckoned from.
    """

    cloud_name = "Google Cloud"
    interval_s = 1.0

    def __init__(
        self, endpoint: str, *, timeout_s: float = REQUEST_TIMEOUT_S, unix_s: Callable[[], float] = time.time
    ) -> None:
        self._client = MetadataClient(endpoint, timeout_s)
        self._unix_s = unix_s
        self._returned_ids: set[str] = set()

    def is_present(self) -> bool:
        try:
            self._read_preempted(PROBE_TIMEOUT_S)
        except MetadataError:
            return False
        return True

    def poll(self) -> Notice | None:
        if not self._read_preempted():
            return None
        notice = Notice(
            kind="preemption",
            deadline_unix_s=self._unix_s() + NOTICE_S,
            notice_id="preempted",
            text=f"Google Cloud takes this spot VM back within {NOTICE_S:.0f} s",
        )
        return take_first_new([notice], self._returned_ids)

    def acknowledge(self, notice: Notice) -> None:
        pass

    def _read_preempted(self, timeout_s: float | None = None) -> bool:
        answer = self._client.request("GET", PREEMPTED_PATH, headers=_HEADERS, timeout_s=timeout_s)
        value = self._client.expect_ok(answer, PREEMPTED_PATH).strip()
        if answer.headers.get("metadata-flavor") != "Google" or value not in ("TRUE", "FALSE"):
            raise MetadataError(f"{PREEMPTED_PATH}: not Google Cloud's answer: {value[:100]!r}")
        return value == "TRUE"
