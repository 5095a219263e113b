"""Hiding secrets in what is shown of a plan; the plan itself is not changed."""

from __future__ import annotations

import re

from periflow_ray.errors import MASK
from periflow_ray.secret_mask import SECRET_WORD, looks_secret

# A value that is itself a variable ($WANDB_API_KEY) tells nothing and is left alone.
_VALUE = r"""(?P<value>(?!["']?\$)(?:"[^"]*"|'[^']*'|[^\s&;"']+))"""
_ASSIGNMENT = re.compile(rf"(?P<name>(?<![\w-])[A-Za-z_]*{SECRET_WORD}\w*=){_VALUE}", re.IGNORECASE)
_FLAG = re.compile(
    rf"(?P<name>(?<![\w-])--?[\w-]*(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)(?:=|\s+)){_VALUE}", re.IGNORECASE
)
_URL_LOGIN = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)[^/\s@:\"']*:[^/\s@\"']+@")


def mask_text(text: str) -> str:
    """Hide what looks like a secret inside a command, a value or a URI: assignments, flags and logins in URLs."""
    text = _ASSIGNMENT.sub(rf"\g<name>{MASK}", text)
    text = _FLAG.sub(rf"\g<name>{MASK}", text)
    return _URL_LOGIN.sub(rf"\g<scheme>{MASK}@", text)


def mask_address(url: str) -> str:
    """Hide all of a URL but its server: where messages are posted, path and query are often a key."""
    scheme, _, rest = url.partition("://")
    server = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    return f"{scheme}://{server}" if len(rest) == len(server) else f"{scheme}://{server}/{MASK}"


def mask_environment(env: dict[str, str]) -> dict[str, str]:
    """Hide the values of secret-looking names, and what looks like a secret inside the others."""
    return {name: MASK if looks_secret(name) else mask_text(value) for name, value in env.items()}
