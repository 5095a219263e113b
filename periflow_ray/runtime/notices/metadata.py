"""Plain HTTP to the metadata service of a virtual machine, over one connection that is kept."""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from periflow_ray.errors import UsageError
from periflow_ray.runtime.notices.notice import MetadataError
from periflow_ray.runtime.timed_http import use_deadline

# The same on AWS, Azure and Google Cloud: a link-local address that only the machine itself reaches.
DEFAULT_ENDPOINT = "http://169.254.169.254"
REQUEST_TIMEOUT_S = 2.0
# How long a machine is asked whether it belongs to a cloud at all.
PROBE_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Answer:
    """Status, headers (names in lower case) and text of one HTTP answer."""

    status: int
    headers: dict[str, str]
    text: str


class MetadataClient:
    """Sends requests to one endpoint and never through a proxy, as the clouds demand.

    Args:
        endpoint: ``http://HOST[:PORT]``.
        timeout_s: for a request and its whole answer, unless a request has its own.
    Raises:
        UsageError: another kind of URL.
    """

    def __init__(self, endpoint: str, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._host, self._port = _parse_endpoint(endpoint)
        self._connection: http.client.HTTPConnection | None = None

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        body: str | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Send one request; every status is an answer.

        Raises:
            MetadataError: no answer in time, or one that is too large.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        is_reused = self._connection is not None
        try:
            try:
                return self._request_once(method, path, headers or {}, body, timeout_s)
            except (http.client.RemoteDisconnected, ConnectionError):
                # A server may close a connection that was idle, which only the next request can tell.
                if not is_reused:
                    raise
                return self._request_once(method, path, headers or {}, body, timeout_s)
        except (OSError, http.client.HTTPException) as err:
            raise MetadataError(
                f"http://{self._host}:{self._port}{path}: no answer ({err or type(err).__name__})"
            ) from err

    def expect_ok(self, answer: Answer, path: str) -> str:
        """The text of an answer with status 200.

        Raises:
            MetadataError: another status.
        """
        if answer.status != http.client.OK:
            raise MetadataError(f"http://{self._host}:{self._port}{path}: HTTP status {answer.status}")
        return answer.text

    def _request_once(
        self, method: str, path: str, headers: dict[str, str], body: str | None, timeout_s: float
    ) -> Answer:
        connection = self._connection or http.client.HTTPConnection(self._host, self._port)
        # Whatever goes wrong below leaves it in a state that the next request must not meet.
        self._connection = None
        try:
            connection.timeout = timeout_s
            if connection.sock is not None:
                connection.sock.settimeout(timeout_s)
            use_deadline(connection, time.monotonic() + timeout_s)
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            content = response.read()
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, fields, content.decode("utf-8", "replace"))


def _parse_endpoint(endpoint: str) -> tuple[str, int]:
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme != "http" or parts.path not in ("", "/") or parts.query:
        raise UsageError(f"metadata endpoint {endpoint!r}: must look like {DEFAULT_ENDPOINT} or http://HOST:PORT")
    return host, port or 80
