"""Which URLs can be asked for something."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit


def judge_http_url(text: str) -> Literal["usable", "unusable", "has a login"]:
    """Whether a text is an http or https URL with a host; one that holds a login is shown where it must not be."""
    try:
        url = urlsplit(text)
        is_usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0 and " " not in text
        has_login = url.username is not None
    except ValueError:
        return "unusable"
    if not is_usable:
        return "unusable"
    return "has a login" if has_login else "usable"
