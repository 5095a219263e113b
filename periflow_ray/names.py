"""Names that users type: prefixes that mean something, and which of the known names was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# A dataset whose name begins like this is a public one of Hugging Face.
HUGGINGFACE_PREFIX = "huggingface:"


def nearest_names(given: str, names: Iterable[str], *, num_names: int = 1, cutoff: float = 0.6) -> list[str]:
    """Known names that look like the given one, the nearest first; upper and lower case do not matter.

    Args:
        num_names: the most to return.
        cutoff: from 0, anything goes, to 1, nothing but the name itself.
    """
    by_folded_name = {name.lower(): name for name in names}
    nearest = difflib.get_close_matches(given.strip().lower(), list(by_folded_name), n=num_names, cutoff=cutoff)
    return [by_folded_name[name] for name in nearest]


def suggest_names(given: str, names: Iterable[str], *, num_names: int = 1, cutoff: float = 0.6) -> str:
    """`` Did you mean 'x' or 'y'?``, or nothing when no name is near; see ``nearest_names``."""
    nearest = nearest_names(given, names, num_names=num_names, cutoff=cutoff)
    return f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
