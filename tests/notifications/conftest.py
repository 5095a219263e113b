"""A job that plugins hear of, and servers that take their messages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.message_server import MessageServer, serve_messages

from periflow_ray.jobs import JobRecord


@pytest.fixture(autouse=True)
def _own_credentials_and_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERIFLOW_CREDENTIALS_FILE", str(tmp_path / "credentials.json"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def make_server() -> Iterator[Callable[[], MessageServer]]:
    """Starts servers, which end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(serve_messages())


@pytest.fixture
def server(make_server: Callable[[], MessageServer]) -> MessageServer:
    """One server."""
    return make_server()


@pytest.fixture
def record() -> JobRecord:
    """Job 12."""
    return JobRecord(12, "cifar", "vision", "local", "CPU", 2, 2, None, "ada", 1700000000.5)
