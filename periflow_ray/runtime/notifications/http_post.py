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

_MAX_ANSWER_BYTES = 64 << 10


def post_json(url: str, document: Mapping[str, Any], *, timeout_s: float, authorization: str | None = None) -> bytes:
    """Post a document; returns the beginning of the answer's body.

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
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=timeout_s) as response:
            return _read(response, deadline_s)
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


def _read(response: http.client.HTTPResponse, deadline_s: float) -> bytes:
    # The timeout of a connection is for each of its pieces, and a server may send very many.
    body = b""
    while len(body) < _MAX_ANSWER_BYTES and (piece := response.read1(_MAX_ANSWER_BYTES - len(body))):
        body += piece
        if time.monotonic() > deadline_s:
            raise TimeoutError
    return body


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
