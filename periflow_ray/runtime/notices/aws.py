"""Notices of Amazon EC2: spot interruptions and rebalance recommendations, read through IMDSv2.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

from periflow_ray.runtime.notices.metadata import PROBE_TIMEOUT_S, REQUEST_TIMEOUT_S, MetadataClient
from periflow_ray.runtime.notices.notice import MetadataError, Notice, shown, take_first_new

TOKEN_PATH = "/latest/api/token"
INTERRUPTION_PATH = "/latest/meta-data/spot/instance-action"
REBALANCE_PATH = "/latest/meta-data/events/recommendations/rebalance"
# The longest that IMDSv2 gives.
TOKEN_LIFETIME_S = 21600
RENEWAL_MARGIN_S = 60
# A recommendation changes nothing at once, so it is asked for less often than the interruption.
REBALANCE_EVERY_NUM_POLLS = 5
_NOT_FOUND, _UNAUTHORIZED = 404, 401


class AwsSource:
    """Two minutes of notice; AWS recommends to ask every 5 s, and there is nothing to acknowledge.

    Args:
        timeout_s: of one request.
        monotonic_s: the clock for the token's age.
    """

    cloud_name = "AWS"
    interval_s = 2.0

    def __init__(
        self,
        endpoint: str,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = MetadataClient(endpoint, timeout_s)
        self._monotonic_s = monotonic_s
        self._token: str | None = None
        self._token_end_s = 0.0
        self._num_polls = 0
        self._returned_ids: set[str] = set()

    def is_present(self) -> bool:
        try:
            self._renew_token(PROBE_TIMEOUT_S)
        except MetadataError:
            return False
        return True

    def poll(self) -> Notice | None:
        return take_first_new(self._read_notices(), self._returned_ids)

    def acknowledge(self, notice: Notice) -> None:
        pass

    def _read_notices(self) -> Iterator[Notice]:
        is_rebalance_due = self._num_polls % REBALANCE_EVERY_NUM_POLLS == 0
        self._num_polls += 1
        if (interruption := self._read_json(INTERRUPTION_PATH)) is not None:
            yield _describe_interruption(interruption)
        elif is_rebalance_due and (rebalance := self._read_json(REBALANCE_PATH)) is not None:
            yield _describe_rebalance(rebalance)

    def _read_json(self, path: str) -> dict[str, Any] | None:
        """The object at a path; None where there is none."""
        if self._token is None or self._monotonic_s() >= self._token_end_s - RENEWAL_MARGIN_S:
            self._renew_token()
        answer = self._client.request("GET", path, headers=self._token_header())
        if answer.status == _UNAUTHORIZED:
            self._renew_token()
            answer = self._client.request("GET", path, headers=self._token_header())
        if answer.status == _NOT_FOUND:
            return None
        text = self._client.expect_ok(answer, path)
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as err:
            raise MetadataError(f"{path}: not JSON: {text[:100]!r}") from err
        if not isinstance(content, dict):
            raise MetadataError(f"{path}: not a JSON object: {text[:100]!r}")
        return content

    def _renew_token(self, timeout_s: float | None = None) -> None:
        self._token = None
        asked_s = self._monotonic_s()
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_LIFETIME_S)}
        answer = self._client.request("PUT", TOKEN_PATH, headers=lifetime, timeout_s=timeout_s)
        token = self._client.expect_ok(answer, TOKEN_PATH)
        if not token.isascii() or not token.isprintable() or not token:
            raise MetadataError(f"{TOKEN_PATH}: not a token")
        self._token, self._token_end_s = token, asked_s + TOKEN_LIFETIME_S

    def _token_header(self) -> dict[str, str]:
        return {"X-aws-ec2-metadata-token": self._token or ""}


def _describe_interruption(content: dict[str, Any]) -> Notice:
    action = content.get("action")
    if not isinstance(action, str):
        raise MetadataError(f"{INTERRUPTION_PATH}: no action in {str(content)[:100]}")
    stated = content.get("time")
    deadline_unix_s = _parse_time(stated)
    when = "at any moment" if deadline_unix_s is None else f"at {stated}"
    return Notice(
        kind="preemption",
        deadline_unix_s=deadline_unix_s,
        notice_id=f"{action} {stated}",
        text=f"AWS takes this spot instance back {shown(when)} (action: {shown(action)})",
    )


def _describe_rebalance(content: dict[str, Any]) -> Notice:
    stated = content.get("noticeTime")
    return Notice(
        kind="warning",
        deadline_unix_s=None,
        notice_id=f"rebalance {stated}",
        text="AWS sees a higher risk that this spot instance is taken back "
        f"(rebalance recommendation of {shown(str(stated))})",
    )


def _parse_time(stated: object) -> float | None:
    """Unix seconds of a time like 2026-09-18T08:22:00Z; None for anything else."""
    try:
        moment = datetime.fromisoformat(str(stated).replace("Z", "+00:00"))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
