"""Fixtures of the tests that submit: a cluster's job server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.job_server import JobServer, serve_jobs


@pytest.fixture
def server() -> Iterator[JobServer]:
    with serve_jobs() as running:
        yield running
