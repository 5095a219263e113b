"""A pytest plugin that writes down how long each test took: ``scripts/test --write-durations tests/durations.json``."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

MIN_DURATION_S = 0.1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-durations",
        type=Path,
        metavar="FILE",
        help=f"write the seconds of each test that takes at least {MIN_DURATION_S} s, with its fixtures",
    )


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--write-durations")
    # The processes of pytest-xdist report to the first one, which writes.
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_DurationsWriter(path))


class _DurationsWriter:
    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._durations_s: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._durations_s[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        long = {test: round(s, 1) for test, s in sorted(self._durations_s.items()) if s >= MIN_DURATION_S}
        self._path.write_text(json.dumps(long, indent=0) + "\n")
