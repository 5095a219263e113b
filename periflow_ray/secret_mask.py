"""Takes secrets out of text, in every form in which programs commonly print a value."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, quote_plus

from periflow_ray.errors import MASK

# Anything shorter is a part of too many other words: hiding it would hide half of the log.
MIN_SECRET_CHARS = 4
# Where `base64` and `openssl base64` begin a new line.
_BASE64_WIDTHS = (76, 64)
# TOKENIZERS_PARALLELISM and its like are settings that people need to see.
SECRET_WORD = r"(?:KEY|TOKEN(?!IZER)|SECRET|PASSWORD|PASSWD|CREDENTIAL)"
_SECRET_NAME = re.compile(SECRET_WORD, re.IGNORECASE)
_PASSWORD_NAME = re.compile(r"PASSWORD|PASSWD", re.IGNORECASE)
# A variable may have such a name and hold a setting; a shorter value could be a part of ordinary output.
MIN_GUESSED_CHARS = 12
_PATH = re.compile(r"(?:~|\.{1,2})?(?:/[\w@.+-]+)*/[\w@.+-]+\.\w+|(?:~|\.{1,2})?(?:/[\w@.+-]+){2,}/?|file://.*")
_ADDRESS_WITHOUT_LOGIN = re.compile(r"[A-Za-z][\w+.-]*://[^@?]*")
_LOGIN = re.compile(r"(?<=://)[^/\s'\"]+@")
# Names and phrases consist of words, numbers and what is short; keys do not.
_WORD = re.compile(r"(?:[a-z]{1,20}|[A-Z]{1,20}|(?:[A-Z]?[a-z]{2,}){1,4}|\w{1,7}|\d+)")
_MAX_WORD_CHARS = 40
_WORD_ENDS = re.compile(r"[^A-Za-z0-9]+")
_LINE_ENDS = re.compile(r"[\r\n]+")
_PERCENT_CODE = re.compile(r"%[0-9A-F]{2}")
# Names of a JSON document's fields whose values are secrets by themselves, as a service account's private key.
_SECRET_FIELD = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)


def can_be_masked(secret: str) -> bool:
    """Whether a value is long enough to be hidden; of one with several lines, at least one line is."""
    return any(len(line.strip()) >= MIN_SECRET_CHARS for line in _LINE_ENDS.split(secret))


def looks_secret(name: str) -> bool:
    """Whether an environment variable's name says that its value is a secret."""
    return _SECRET_NAME.search(name) is not None


def guess_secrets(environ: Mapping[str, str]) -> list[str]:
    """Values of variables that are called like a secret and look like one.

    Paths, addresses and ordinary words are left out, because hiding them would hide what people need to read.
    """
    return [value for name, value in environ.items() if looks_secret(name) and _may_be_secret(name, value.strip())]


def _may_be_secret(name: str, value: str) -> bool:
    if len(value) < MIN_GUESSED_CHARS or _PATH.fullmatch(value) or _ADDRESS_WITHOUT_LOGIN.fullmatch(value):
        return False
    words = [word for word in _WORD_ENDS.split(value) if word]
    is_phrase = all(len(word) <= _MAX_WORD_CHARS and _WORD.fullmatch(word) for word in words)
    # People make passwords of several words; one word alone is rather the name of something.
    return not is_phrase or (len(words) > 1 and _PASSWORD_NAME.search(name) is not None)


def hide_logins(text: str) -> str:
    """A text whose addresses have no user and password: ``https://***@host/path``."""
    return _LOGIN.sub(f"{MASK}@", text)


class SecretMask:
    """Replaces secrets by ``***``, also as base64, JSON, URL, shell, HTML or hexadecimal text, and line by line.

    Args:
        secrets: values; what cannot be masked (``can_be_masked``) is left alone.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets for form in _forms_of(secret)}
        self._forms = tuple(form for form in forms if len(form.strip()) >= MIN_SECRET_CHARS)
        self.longest = max(map(len, self._forms), default=0)
        """Characters of the longest form."""

    def apply(self, text: str) -> str:
        """A text without the secrets."""
        if not (spans := self._find(text)):
            return text
        parts, at = [], 0
        for start, end in spans:
            parts += [text[at:start], MASK]
            at = end
        return "".join([*parts, text[at:]])

    def cut(self, text: str, num_chars: int) -> tuple[str, str]:
        """Cut a text, but never through a secret.

        Args:
            text: if more of it will follow, it has at least ``longest`` characters more than ``num_chars``.
        Returns:
            The beginning, without secrets and with about ``num_chars`` characters, and the rest as it was.
        """
        for start, end in self._find(text):
            if start < num_chars < end:
                if start == 0:
                    return MASK, text[end:]
                num_chars = start
        return self.apply(text[:num_chars]), text[num_chars:]

    def _find(self, text: str) -> list[tuple[int, int]]:
        """Where secrets are: start and end, in order; those that overlap are one."""
        found = []
        for form in self._forms:
            start = text.find(form)
            while start >= 0:
                found.append((start, start + len(form)))
                start = text.find(form, start + 1)
        merged: list[tuple[int, int]] = []
        for start, end in sorted(found):
            if merged and start < merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((start, end))
        return merged


def _forms_of(secret: str) -> Iterator[str]:
    for value in {secret, secret.strip(), *_fields_of(secret)}:
        yield value
        if not can_be_masked(value):
            continue
        yield from _escaped(value)
        yield from _encoded(value)
        if len(lines := [line.strip() for line in _LINE_ENDS.split(value)]) > 1:
            for line in lines:
                yield from (line, json.dumps(line)[1:-1])


def _fields_of(secret: str) -> Iterator[str]:
    """Values of a JSON document whose names say that they are secrets."""
    if not secret.lstrip().startswith(("{", "[")):
        return
    try:
        waiting = [("", json.loads(secret))]
    except (ValueError, RecursionError):
        return
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(name, item) for item in value]
        elif isinstance(value, str) and _SECRET_FIELD.search(name):
            yield value


def _escaped(value: str) -> Iterator[str]:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        # Also in a JSON text inside a JSON text, as services send it.
        yield from (text[1:-1], json.dumps(text[1:-1])[1:-1])
    yield repr(value)[1:-1]
    yield repr(value.encode("utf-8", "surrogateescape"))[2:-1]
    for text in (
        quote(value, errors="replace"),
        quote(value, "", errors="replace"),
        quote_plus(value, errors="replace"),
    ):
        yield from (text, _PERCENT_CODE.sub(lambda code: code[0].lower(), text))
    yield html.escape(value)
    yield shlex.quote(value)[1:-1] if shlex.quote(value) != value else value
    yield value.replace("'", "'\\''")
    yield re.sub(r"([^\w@%+=:,./-])", r"\\\1", value)


def _encoded(value: str) -> Iterator[str]:
    content = value.encode("utf-8", "surrogateescape")
    yield from (content.hex(), content.hex().upper())
    for num_before in range(3):
        # What is before and after it changes the characters at both ends; those between are always the same.
        encoded = base64.b64encode(b"\0" * num_before + content).decode().rstrip("=")
        end = len(encoded) - (1 if (num_before + len(content)) % 3 else 0)
        core = encoded[(0, 2, 3)[num_before] : end]
        yield from (core, core.translate(str.maketrans("+/", "-_")))
    whole = base64.b64encode(content).decode().rstrip("=")
    for width in _BASE64_WIDTHS:
        if len(whole) > width:
            yield from (whole[start : start + width] for start in range(0, len(whole) - width, width))
            # The last line may go on with what comes after the secret.
            yield whole[(len(whole) - 1) // width * width : -1]
