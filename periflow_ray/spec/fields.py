"""The kinds of value a template holds: text, whole numbers, paths, memory sizes, shell commands.

Each kind is an annotated type whose reader says what was given and what is allowed. Readers take what a template
gives (``PlainScalar`` for unquoted numbers, booleans and dates) as well as ordinary Python values.

Long because it is the list of all kinds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from periflow_ray.names import suggest_names
from periflow_ray.urls import judge_http_url

# Ray counts resources in 64-bit integers of 1/10,000; a million devices is far beyond any cluster and far below that.
MAX_COUNT = 1_000_000
MAX_SHOWN_CHARS = 60
ENV_VAR_NAME_PATTERN = "[A-Za-z_][A-Za-z0-9_]*"
# Linux takes 131,072 bytes of a variable with its name, and mount paths in it may become longer.
MAX_ENV_VAR_BYTES = 120_000

_MEMORY_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_CONTROL_CHARS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_DECIMAL = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,14})")
_DECIMAL_FRACTION = re.compile(r"[-+]?[0-9]{1,15}(?:\.[0-9]{0,15})?|[-+]?\.[0-9]{1,15}")
_MEMORY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]+)")
_DANGLING_BACKSLASH = re.compile(r"(?<!\\)((?:\\\\)*)\\\s*\Z")


@dataclass(frozen=True)
class PlainScalar:
    """A number, boolean or date as it stands unquoted in a template; ``source`` is its text there."""

    source: str
    kind: Literal["number", "boolean", "date"]


class FoldedText(str):
    """Text that YAML joined from several lines, some of which ended in a backslash.

    ``shell_text`` is the same text with a line break after each of those backslashes, as bash would have to see it.
    """

    shell_text: str

    def __new__(cls, text: str, shell_text: str) -> FoldedText:
        folded = super().__new__(cls, text)
        folded.shell_text = shell_text
        return folded


def describe_value(value: object) -> str:
    """What was given, in words and on one line; long text is cut."""
    if value is None:
        return "empty"
    if isinstance(value, PlainScalar) and value.kind == "boolean":
        return f"{_show(value.source)} (a boolean)"
    if isinstance(value, PlainScalar):
        return f"the {value.kind} {_show(value.source)}"
    if isinstance(value, bool):
        return f"{str(value).lower()} (a boolean)"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {quote(value)}"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list) else f"a {type(value).__name__}"


def quote(text: str) -> str:
    """Text in quotes, on one line, cut after some 60 characters."""
    return repr(_shorten(str(text)))


def suggest_name(given: str, names: list[str]) -> str:
    """`` Did you mean 'x'?``, or nothing when no name is near."""
    if len(given) > MAX_SHOWN_CHARS:
        return ""
    return suggest_names(given, names)


def refuse(problem: str, key: str | tuple[str, ...] = ()) -> PydanticCustomError:
    """The error for a value; ``problem`` continues a sentence that starts with the key's name.

    Args:
        key: below the value, or the way of keys to it.
    """
    keys = (key,) if isinstance(key, str) else key
    return PydanticCustomError("template", "{problem}", {"problem": problem, "keys": keys})


def read_text(value: object) -> str:
    """One line of text; a number or date is taken as it was written, a boolean is refused (``no`` was hardly meant)."""
    text = _read_written(value).strip()
    if not text:
        raise refuse("is empty; it must be text")
    if _CONTROL_CHARS.search(text):
        raise refuse(f"is {describe_value(text)}; it must be one line without control characters")
    return text


def read_names(value: object) -> tuple[str, ...]:
    """One name, or a list of different ones."""
    if not isinstance(value, (list, tuple)):
        return (read_text(value),)
    names = tuple(read_text(name) for name in value)
    if not names:
        raise refuse("is an empty list; it must have a name at least")
    if len(set(names)) < len(names):
        raise refuse("has a name twice")
    return names


def read_command(value: object) -> str:
    """A bash command of one or more lines; a backslash at the end of a line continues it, as in a shell script."""
    if isinstance(value, list):
        raise refuse("is a list; it must be one bash command as text, or a mapping with 'run' and an optional 'setup'")
    text = value.shell_text if isinstance(value, FoldedText) else _read_written(value)
    # bash takes a backslash at the very end as an argument of its own; at the end of a template it continues nothing.
    text = _DANGLING_BACKSLASH.sub(r"\1", text).strip()
    if not text:
        raise refuse("is empty; it must be a bash command, for example 'python main.py'")
    _refuse_nul(text)
    return text


def read_absolute_path(value: object) -> str:
    """An absolute POSIX path below the root, without ``..``; repeated and trailing slashes are dropped."""
    text = read_text(value)
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not text.startswith("/") or not parts or ".." in parts:
        raise refuse(f"is {quote(text)}; it must be an absolute path below / without '..', for example '/workspace'")
    return "/" + "/".join(parts)


def read_http_url(value: object) -> str:
    """A URL for requests: http or https, with a host and without a login."""
    text = read_text(value)
    judgement = judge_http_url(text)
    # The text itself is not repeated: such a URL is often a secret.
    if judgement == "unusable":
        raise refuse("must be a URL that starts with http:// or https://, for example 'https://example.com/hook'")
    if judgement == "has a login":
        raise refuse("holds a login; put the URL and an authorization into a credential, and name it in credential_id")
    return text


def read_memory(value: object) -> str:
    """A positive size with its unit, for example ``16GiB`` or ``500MB``."""
    text = read_text(value)
    if parse_memory_bytes(text) is None:
        raise refuse(
            f"is {quote(text)}; it must be a size above 0 with a unit (B, KB, MB, GB, TB, KiB, MiB, GiB or TiB), "
            "for example '16GiB'"
        )
    return text


def parse_memory_bytes(text: str) -> int | None:
    """Bytes of a size such as ``16GiB`` (2**30 each) or ``500MB`` (10**6 each); None when it is not one."""
    match = _MEMORY.fullmatch(text)
    unit_bytes = _MEMORY_UNITS.get(match[2].upper()) if match else None
    if match is None or unit_bytes is None:
        return None
    return int(float(match[1]) * unit_bytes) or None


def read_positive_number(value: object) -> float:
    """A decimal number above 0."""
    number = math.nan
    if isinstance(value, PlainScalar) and value.kind == "number" and _DECIMAL_FRACTION.fullmatch(value.source):
        number = float(value.source)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    if not 0 < number <= MAX_COUNT:
        raise refuse(f"is {describe_value(value)}; it must be a decimal number above 0, for example 4 or 0.5")
    return number


def read_env_var_name(value: object) -> str:
    """A name that every shell accepts."""
    if not isinstance(value, str) or not re.fullmatch(ENV_VAR_NAME_PATTERN, value):
        raise refuse(
            "is not a valid environment variable name: use letters, digits and underscores, and no digit first"
        )
    return str(value)


def read_env_var_value(value: object) -> str:
    """The text of an environment variable: what is written, so ``1.10`` stays ``1.10`` and ``true`` is ``true``."""
    if value is None:
        raise refuse("has no value; write '' for an empty one")
    if isinstance(value, PlainScalar):
        return value.source
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if not isinstance(value, str):
        raise refuse(f"is {describe_value(value)}; it must be text, a number or a boolean")
    _refuse_nul(value)
    if problem := describe_long_value(value):
        raise refuse(problem)
    return str(value)


def describe_long_value(value: str) -> str | None:
    """Why a value is too long for an environment variable; None if it is not."""
    num_bytes = len(value.encode("utf-8", "surrogateescape"))
    if num_bytes <= MAX_ENV_VAR_BYTES:
        return None
    return (
        f"has {num_bytes:,} bytes; a variable may have {MAX_ENV_VAR_BYTES:,}. Put the text into a file of the workspace"
    )


def whole_number_reader(minimum: int) -> Callable[[object], int]:
    """A reader of decimal whole numbers from ``minimum`` up."""

    def read_whole_number(value: object) -> int:
        number = None
        if isinstance(value, PlainScalar) and value.kind == "number" and _DECIMAL.fullmatch(value.source):
            number = int(value.source)
        elif isinstance(value, int) and not isinstance(value, bool):
            number = value
        if number is None or not minimum <= number <= MAX_COUNT:
            raise refuse(
                f"is {describe_value(value)}; it must be a decimal whole number from {minimum} to {MAX_COUNT}"
                + (", without quotes" if isinstance(value, str) and _DECIMAL.fullmatch(value) else "")
            )
        return number

    return read_whole_number


def choice_reader(*choices: str) -> Callable[[object], str]:
    """A reader of one of the given words."""

    def read_choice(value: object) -> str:
        if isinstance(value, str) and value in choices:
            return str(value)
        allowed = " or ".join(repr(choice) for choice in choices)
        nearest = suggest_name(value, list(choices)) if isinstance(value, str) and len(choices) > 1 else ""
        raise refuse(f"is {describe_value(value)}; it must be {allowed}.{nearest}")

    return read_choice


def _read_written(value: object) -> str:
    if isinstance(value, PlainScalar) and value.kind != "boolean":
        return value.source
    if isinstance(value, PlainScalar):
        source = _show(value.source)
        raise refuse(f"is {source}, which YAML reads as a boolean; it must be text: put it in quotes, '{source}'")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise refuse(f"is {describe_value(value)}; it must be text")
    return str(value)


def _refuse_nul(text: str) -> None:
    # The kernel ends arguments and environment entries at NUL; lone surrogates have no UTF-8 form.
    if re.search(r"[\x00\ud800-\udfff]", text):
        raise refuse(f"is {describe_value(text)}; it must not contain NUL characters or lone surrogates")


def _show(source: str) -> str:
    # A scalar with an explicit tag, such as !!int, can be any text.
    return source if source.isprintable() and len(source) <= MAX_SHOWN_CHARS else quote(source)


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."


# Editors see that an unquoted number is fine where text is wanted.
Text = Annotated[str, BeforeValidator(read_text), WithJsonSchema({"type": ["string", "number"], "pattern": r"\S"})]
VmNames = Annotated[
    tuple[str, ...],
    BeforeValidator(read_names),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": r"\S"},
                {"type": "array", "items": {"type": "string", "pattern": r"\S"}, "minItems": 1},
            ]
        }
    ),
]
Command = Annotated[str, BeforeValidator(read_command), WithJsonSchema({"type": "string", "pattern": r"\S"})]
AbsolutePath = Annotated[
    str, BeforeValidator(read_absolute_path), WithJsonSchema({"type": "string", "pattern": r"^\s*/+[^/\s]"})
]
HttpUrl = Annotated[
    str, BeforeValidator(read_http_url), WithJsonSchema({"type": "string", "pattern": r"^\s*[Hh][Tt][Tt][Pp][Ss]?://"})
]
Memory = Annotated[
    str,
    BeforeValidator(read_memory),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?([KMGTkmgt][Ii]?)?[Bb]$"}),
]
PositiveNumber = Annotated[
    float, BeforeValidator(read_positive_number), WithJsonSchema({"type": "number", "exclusiveMinimum": 0})
]
CountFromOne = Annotated[
    int, BeforeValidator(whole_number_reader(1)), WithJsonSchema({"type": "integer", "minimum": 1})
]
CountFromZero = Annotated[
    int, BeforeValidator(whole_number_reader(0)), WithJsonSchema({"type": "integer", "minimum": 0})
]
EnvVarName = Annotated[str, BeforeValidator(read_env_var_name)]
EnvVarValue = Annotated[
    str, BeforeValidator(read_env_var_value), WithJsonSchema({"type": ["string", "number", "boolean"]})
]
