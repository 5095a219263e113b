"""Text that a job, a script or a file name has chosen, on its way to a terminal: it must not drive the terminal."""

from __future__ import annotations

import re

from periflow_ray.bounded_text import shorten

# C0 and C1 controls but tab and newline, and what changes the direction of writing or the line without being seen.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_COLOUR = re.compile(r"(\x1b\[[0-9;:]{0,60}m)")
_COLOUR_END = re.compile(r"\x1b\[(0*;)*0*m")
MAX_CELL_CHARS = 500
MAX_BLOCK_CHARS = 20_000


def escape_controls(text: str) -> str:
    """The text with every control character but tab and newline spelled out, as ``\\x1b``."""
    return _CONTROL.sub(lambda found: _spell(found[0]), text)


def escape_line(text: str) -> str:
    """As ``escape_controls``, but colours and bold text stay, and end with the text."""
    if _CONTROL.search(text) is None:
        return text
    parts = _COLOUR.split(text)
    colours = parts[1::2]
    parts[::2] = map(escape_controls, parts[::2])
    if colours and not _COLOUR_END.fullmatch(colours[-1]):
        parts.append("\x1b[0m")
    return "".join(parts)


def escape_cell(text: str) -> str:
    """A name or a sentence as one line of bounded length."""
    return shorten(escape_controls(text.replace("\n", r"\n")), MAX_CELL_CHARS)


def escape_block(text: str) -> str:
    """A message of several lines, of bounded length."""
    return shorten(escape_controls(text), MAX_BLOCK_CHARS)


def escape_json(text: str) -> str:
    """A JSON document that is the same document; JSON itself spells out only the C0 controls."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _spell(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}"
