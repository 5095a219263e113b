"""Tells ``plugin.slack`` and ``plugin.webhook`` of a template or a call what happens to a job."""

from __future__ import annotations

import functools
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from periflow_ray.jobs import JobRecord
from periflow_ray.plan.masking import mask_address
from periflow_ray.runtime.notifications.message import JobMessage, MessageKind, build_message
from periflow_ray.runtime.notifications.receivers import (
    SLACK_API_URL,
    SLACK_API_VARIABLE,
    Receiver,
    SlackChannel,
    Webhook,
)
from periflow_ray.runtime.outbox import RETRY_DELAYS_S, Outbox
from periflow_ray.runtime.plugin_credentials import read_plugin_credential

if TYPE_CHECKING:
    from periflow_ray.spec.models import PluginSpec

TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 5.0
MAX_WAITING_MESSAGES = 64


class Notifier:
    """``notify`` and ``close`` never raise; ``notify`` never waits, and ``close`` only for a few seconds.

    Args:
        on_problem: called with a sentence, once for each receiver that messages do not reach, from any thread.
        timeout_s: for one try of one message.
        retry_delays_s: seconds before the second, third, ... try.
        close_timeout_s: how long ``close`` waits for what is still to be sent.
    """

    def __init__(
        self,
        record: JobRecord,
        receivers: Sequence[Receiver],
        on_problem: Callable[[str], None],
        *,
        timeout_s: float = TIMEOUT_S,
        retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ) -> None:
        self._record = record
        self._close_timeout_s = close_timeout_s
        # One for each, so that a slow receiver does not hold the others up.
        self._outboxes = [
            Outbox[JobMessage](
                receiver.name,
                functools.partial(receiver.send, timeout_s=timeout_s),
                on_problem,
                max_items=MAX_WAITING_MESSAGES,
                retry_delays_s=retry_delays_s,
            )
            for receiver in receivers
        ]

    def notify(
        self,
        kind: MessageKind,
        text: str = "",
        *,
        step: int | None = None,
        attempt: int = 0,
        next_text: str | None = None,
    ) -> None:
        """Send a message to every receiver, soon.

        Args:
            text: the cause or circumstance in plain words; its first few lines are sent.
            step: where the training is.
            next_text: a sentence on what follows; without it, what usually follows such an event.
        """
        message = build_message(
            self._record,
            kind,
            message_id=uuid.uuid4().hex,
            time_unix_s=time.time(),
            text=text,
            next_text=next_text,
            step=step,
            attempt=attempt,
        )
        for outbox in self._outboxes:
            outbox.put(message)

    def close(self) -> None:
        """Send what is left, within a few seconds, and give up the rest."""
        for outbox in self._outboxes:
            outbox.begin_close()
        deadline_s = time.monotonic() + self._close_timeout_s
        for outbox in self._outboxes:
            outbox.end_close(deadline_s)


def make_notifier(
    plugin: PluginSpec | None,
    record: JobRecord,
    on_problem: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
) -> Notifier | None:
    """A notifier for the receivers that the plugins name; None if they name none that can be used.

    Credentials are read from this machine. One that is missing, or of another type, is a problem to tell.
    """
    if plugin is None:
        return None
    receivers = [
        receiver
        for receiver in (_slack_channel(plugin, on_problem, environ), _webhook(plugin, on_problem))
        if receiver is not None
    ]
    return Notifier(record, receivers, on_problem) if receivers else None


def _slack_channel(
    plugin: PluginSpec, on_problem: Callable[[str], None], environ: Mapping[str, str]
) -> SlackChannel | None:
    slack = plugin.slack
    if slack is None:
        return None
    credential = read_plugin_credential("plugin.slack", slack.credential_id, "slack", on_problem)
    if credential is None:
        return None
    return SlackChannel(slack.channel, credential, environ.get(SLACK_API_VARIABLE) or SLACK_API_URL)


def _webhook(plugin: PluginSpec, on_problem: Callable[[str], None]) -> Webhook | None:
    webhook = plugin.webhook
    if webhook is None:
        return None
    if webhook.url is not None:
        return Webhook(f"webhook {mask_address(webhook.url)}", webhook.url)
    assert webhook.credential_id is not None
    credential = read_plugin_credential("plugin.webhook", webhook.credential_id, "webhook", on_problem)
    if credential is None:
        return None
    return Webhook(f"webhook '{credential.name}'", credential.values["url"], credential.values.get("authorization"))
