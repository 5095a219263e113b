"""One JSON document to an HTTP server, within a short time, with errors that repeat no secret."""

from __future__ import annotations

import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from periflow_ray.finite_json import dump_json
from periflow_ray.runtime.outbox import DeliveryError
from periflow_ray.runtime.timed_http import AnswerTooLargeError, use_deadline

_PIECE_BYTES = 16 << 10


def post_json(url: str, document: Mapping[str, Any], *, timeout_s: float, authorization: str | None = None) -> bytes:
    """Post a document; returns the answer's body, all of which has to come in time; empty if it is a long one.

    Redirects are not followed: they would take the authorization to another server.

    Raises:
        DeliveryError: no answer in time, or one that is no success; neither URL nor answer are in its reason.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise DeliveryError("its address does not start with http:// or https://", is_temporary=False)
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "periflow-ray"}
    if authorization is not None:
        headers["Authorization"] = authorization
    deadline_s = time.monotonic() + timeout_s
    try:
        request = urllib.request.Request(url, dump_json(document).encode(), headers, method="POST")
        opener = urllib.request.build_opener(_NoRedirects, _TimedHttp(deadline_s), _TimedHttps(deadline_s))
        with opener.open(request, timeout=timeout_s) as response:
            return _read(response)
    except urllib.error.HTTPError as err:
        with err:
            raise _explain_status(err) from None
    except OSError as err:
        raise _explain_connection(err, timeout_s) from None
    except (http.client.HTTPException, ValueError) as err:
        raise DeliveryError(f"the request cannot be made ({type(err).__name__})", is_temporary=False) from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _read(response: http.client.HTTPResponse) -> bytes:
    body = b""
    try:
        while piece := response.read1(_PIECE_BYTES):
            body += piece
    except AnswerTooLargeError:
        # It took the message, and what it shows beside that is for people.
        return b""
    return body


class _TimedHttp(urllib.request.HTTPHandler):
    def __init__(self, deadline_s: float) -> None:
        super().__init__()
        self._deadline_s = deadline_s

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_timed(http.client.HTTPConnection, self._deadline_s), request)


class _TimedHttps(urllib.request.HTTPSHandler):
    def __init__(self, deadline_s: float) -> None:
        super().__init__()
        self._deadline_s = deadline_s

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_timed(http.client.HTTPSConnection, self._deadline_s), request)


def _timed(kind: type[http.client.HTTPConnection], deadline_s: float) -> Any:
    def connect(host: str, **options: Any) -> http.client.HTTPConnection:
        connection = kind(host, **options)
        use_deadline(connection, deadline_s)
        return connection

    return connect


def _explain_status(err: urllib.error.HTTPError) -> DeliveryError:
    reason = f"it answers {err.code} {http.client.responses.get(err.code, '')}".rstrip()
    if 300 <= err.code < 400:
        reason += "; use the address that it redirects to"
    is_temporary = err.code in (408, 425, 429) or err.code >= 500
    after = (err.headers.get("Retry-After") or "").strip()
    return DeliveryError(reason, is_temporary=is_temporary, retry_after_s=float(after) if after.isdecimal() else 0.0)


def _explain_connection(err: OSError, timeout_s: float) -> DeliveryError:
    cause = err.reason if isinstance(err, urllib.error.URLError) and isinstance(err.reason, OSError) else err
    if isinstance(cause, TimeoutError):
        return DeliveryError(f"it did not answer within {timeout_s:g} s", is_temporary=True)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return DeliveryError(f"its certificate is not valid ({cause.verify_message})", is_temporary=False)
    return DeliveryError(f"it cannot be reached ({cause.strerror or type(cause).__name__})", is_temporary=True)
