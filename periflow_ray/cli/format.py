"""How times, durations and numbers look to people, and times to programs."""

from __future__ import annotations

from datetime import datetime, timezone

NOTHING = "-"


def format_time(unix_s: float | None) -> str:
    """A local time to the second; ``-`` for None."""
    return NOTHING if unix_s is None else datetime.fromtimestamp(unix_s).strftime("%Y-%m-%d %H:%M:%S")


def iso_time(unix_s: float | None) -> str | None:
    """ISO 8601 in UTC with milliseconds, for programs."""
    return None if unix_s is None else datetime.fromtimestamp(unix_s, timezone.utc).isoformat(timespec="milliseconds")


def format_duration(duration_s: float | None) -> str:
    """The two or three largest units: ``4s``, ``2m 03s``, ``1h 02m 03s``, ``3d 01h 02m``."""
    if duration_s is None:
        return NOTHING
    minutes, seconds = divmod(max(0, round(duration_s)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}h {minutes:02}m"
    if hours:
        return f"{hours}h {minutes:02}m {seconds:02}s"
    return f"{minutes}m {seconds:02}s" if minutes else f"{seconds}s"


def format_value(value: object) -> str:
    """A metric's value: numbers with six significant digits, everything else as it is."""
    if value is None:
        return NOTHING
    return f"{value:.6g}" if isinstance(value, float) else str(value)
