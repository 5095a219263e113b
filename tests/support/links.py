"""The links of a shell whose member is not there."""

from __future__ import annotations

from collections.abc import Callable

from periflow_ray.runtime.member.shell import Links

NO_LINKS = Links(
    save=lambda step, replace_waiting: None,
    miss_save=lambda step: None,
    save_from=lambda step, source, is_awaited: None,
    meet_at_report=lambda number, has_files: has_files,
    newest_commit=lambda: None,
)
# Of what a shell does while it prepares itself.
TELLS_NOBODY: Callable[[str], None] = lambda text: None  # noqa: E731
