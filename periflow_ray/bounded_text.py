"""Text of bounded length, for what a script may make as long as it likes."""

from __future__ import annotations


def shorten(text: str, max_chars: int) -> str:
    """A text that is too long without its middle, which says how much is missing."""
    if len(text) <= max_chars:
        return text
    kept = max_chars // 2
    return f"{text[:kept]}[... {len(text) - 2 * kept:,} characters ...]{text[-kept:]}"
