"""Fixtures of the tests that submit: a cluster's job server."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from support.job_server import JobServer


@pytest.fixture
def server() -> Iterator[JobServer]:
    with JobServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()
