"""A cluster's job server for tests of the command line."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from support.job_server import JobServer


@contextmanager
def serve_cluster() -> Iterator[JobServer]:
    """Answers on loopback while it is open."""
    with JobServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
