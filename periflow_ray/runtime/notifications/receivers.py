"""Who gets messages: a Slack channel, or any server that takes JSON."""

from __future__ import annotations

import json
import re
from typing import Protocol

from periflow_ray.credentials import Credential
from periflow_ray.runtime.notifications.http_post import post_json
from periflow_ray.runtime.notifications.message import JobMessage, describe_message, message_document
from periflow_ray.runtime.outbox import DeliveryError

SLACK_API_URL = "https://slack.com/api"
SLACK_API_VARIABLE = "PERIFLOW_SLACK_API"

# What Slack's API answers, with status 200, when it has trouble of its own.
_TEMPORARY_SLACK_ERRORS = frozenset(
    {"ratelimited", "rate_limited", "internal_error", "fatal_error", "service_unavailable", "request_timeout"}
)
_SLACK_HINTS = {
    "channel_not_found": "check its name, and invite the app to it",
    "not_in_channel": "invite the app to it",
    "is_archived": "choose another one",
    "missing_scope": "the app needs the scope chat:write",
    "invalid_auth": "check the credential's token",
    "not_authed": "check the credential's token",
    "token_expired": "check the credential's token",
    "token_revoked": "check the credential's token",
    "account_inactive": "check the credential's token",
}


class Receiver(Protocol):
    """Somebody who gets messages."""

    name: str

    def send(self, message: JobMessage, timeout_s: float) -> None:
        """Deliver a message.

        Raises:
            DeliveryError: it did not arrive, as far as is known.
        """


class SlackChannel:
    """A channel of Slack, through a bot's token or an incoming webhook (whose channel is its own).

    Args:
        channel: its name or ID.
        credential: of type slack.
        api_url: where Slack's API is.
    """

    def __init__(self, channel: str, credential: Credential, api_url: str = SLACK_API_URL) -> None:
        self.name = f"Slack channel '{channel}'"
        self._channel = channel
        self._values = credential.values
        self._api_url = api_url.rstrip("/")

    def send(self, message: JobMessage, timeout_s: float) -> None:
        """Deliver a message."""
        text = _slack_text(message)
        if "webhook_url" in self._values:
            post_json(self._values["webhook_url"], {"text": text}, timeout_s=timeout_s)
            return
        answer = post_json(
            f"{self._api_url}/chat.postMessage",
            {"channel": self._channel, "text": text, "unfurl_links": False},
            timeout_s=timeout_s,
            authorization=f"Bearer {self._values['token']}",
        )
        _check_slack_answer(answer)


class Webhook:
    """A server that takes each message as a JSON document.

    Args:
        name: how problems call it; its URL may be a secret.
        authorization: the whole header of that name.
    """

    def __init__(self, name: str, url: str, authorization: str | None = None) -> None:
        self.name = name
        self._url = url
        self._authorization = authorization

    def send(self, message: JobMessage, timeout_s: float) -> None:
        """Deliver a message."""
        post_json(self._url, message_document(message), timeout_s=timeout_s, authorization=self._authorization)


def _slack_text(message: JobMessage) -> str:
    headline, _, rest = describe_message(message).partition("\n")
    title = _escape(message.job_title)
    text = f"*{title}*{_escape(headline).removeprefix(title)}\n{_escape(rest)}"
    return text.removesuffix(message.command) + f"`{message.command}`"


def _escape(text: str) -> str:
    # Slack's own three; anything else between < and > would be a link, or call the whole channel.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _check_slack_answer(answer: bytes) -> None:
    try:
        document = json.loads(answer)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise DeliveryError("its answer is not one of Slack's", is_temporary=False)
    if document.get("ok") is True:
        return
    error = str(document.get("error"))
    word = error if re.fullmatch(r"[a-z_]{1,60}", error) else "an unknown error"
    hint = f"; {_SLACK_HINTS[word]}" if word in _SLACK_HINTS else ""
    raise DeliveryError(f"Slack answers {word}{hint}", is_temporary=word in _TEMPORARY_SLACK_ERRORS)
