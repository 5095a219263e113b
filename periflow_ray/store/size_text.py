"""How sizes look to people."""

from __future__ import annotations


def format_size(num_bytes: int) -> str:
    """Decimal units with one digit: ``31.0 MB``."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    size = float(num_bytes)
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} PB"
