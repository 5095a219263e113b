"""A pytest plugin for two processes side by side: the files whose tests start Ray are one lane, all others another.

Two Ray clusters at once are too much for two cores: whatever waits for one of them may give up then.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

RAY_LANE = "ray"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the lane of the files that start Ray, which is the longer one."""
    for item in items:
        is_marked = item.get_closest_marker("ray") is not None
        assert not is_marked or starts_ray(item.path), f"{item.path} needs the words 'mark.ray' to be in Ray's lane"
    items.sort(key=lambda item: not starts_ray(item.path))


# pytest-xdist's own way to keep tests together, @pytest.mark.xdist_group, has no effect with pytest 9.2.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Lanes in place of groups where ``--dist loadgroup`` asks for those."""
    from xdist.scheduler import LoadScopeScheduling

    class LaneScheduling(LoadScopeScheduling):
        """The lane with Ray goes to one process as a whole, each other test to the process that is free next."""

        def _split_scope(self, nodeid: str) -> str:
            return RAY_LANE if starts_ray(config.rootpath / nodeid.partition("::")[0]) else nodeid

    return LaneScheduling(config, log) if config.getoption("dist") == "loadgroup" else None


@cache
def starts_ray(path: Path) -> bool:
    """Whether a file has tests that start Ray; whoever hands them out knows their names only, and not their marks."""
    return "mark.ray" in path.read_text("utf-8")
