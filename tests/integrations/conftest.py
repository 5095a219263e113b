"""Every test here trains in a directory of its own, with a session that nobody else uses."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from periflow_ray.sdk import wire
from periflow_ray.sdk.channel import Hello, MetricRecord
from periflow_ray.sdk.session import use_channel_factory

JOB_VARIABLES = [
    "CKPT_DIR",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "NPROC_PER_NODE",
    "NUM_NODES",
    "PERIFLOW_ENABLED",
    "PERIFLOW_SESSION",
    "PERIFLOW_ATTEMPT",
    "PROCESSED_ITERS",
    "RANK",
    "TORCHELASTIC_RUN_ID",
    "WORLD_SIZE",
]


@pytest.fixture(autouse=True)
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in JOB_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    begun = sys.modules.get("periflow_ray.lightning.checkpoints")
    if begun is not None:
        monkeypatch.setattr(begun._Fits, "num_begun", 0)
    yield tmp_path
    use_channel_factory(None)


@pytest.fixture
def ckpt_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "ckpt"
    directory.mkdir()
    monkeypatch.setenv("CKPT_DIR", str(directory))
    return directory


class RecordingChannel:
    """Keeps what a session sends; ``announced_step`` is announced as soon as the session opens."""

    def __init__(self) -> None:
        self.hello: Hello | None = None
        self.announced_step = -2  # No step, also if the process's session has heard of one in an earlier test.
        self.records: list[tuple[int, dict[str, Any]]] = []
        self.uploads: list[tuple[int, list[str]]] = []

    def open(self, hello: Hello, on_announced_step: Any, read_step: Any) -> None:
        self.hello = hello
        on_announced_step(self.announced_step)

    def send(self, step: int, records: list[MetricRecord], asked_step: int) -> None:
        self.records += [(record.step, dict(record.values)) for record in records]

    def save_checkpoint(self, step: int, replace_waiting: bool) -> None:
        directory = Path(os.environ["CKPT_DIR"])
        self.uploads.append((step, sorted(str(path.relative_to(directory)) for path in directory.rglob("*.*"))))

    def close(self, has_failed: bool = False) -> None:
        pass

    def take_records(self) -> list[tuple[int, dict[str, Any]]]:
        """Close the session and return all (step, values)."""
        use_channel_factory(None)
        return self.records


@pytest.fixture
def channel(ckpt_dir: Path) -> RecordingChannel:
    recording = RecordingChannel()
    use_channel_factory(lambda local_log_name: recording)
    return recording


class FakeAgent:
    """A node agent that keeps every message and takes no snapshots."""

    def __init__(self, socket_path: Path) -> None:
        self.messages: list[dict[str, Any]] = []
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(socket_path))
        self._server.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        for message in wire.read_messages(connection):
            self.messages.append(message)
            if message["kind"] == "checkpoint":
                connection.sendall(wire.encode("checkpointed", error=None))
            if message["kind"] == "bye":
                break
        connection.close()

    def take_messages(self) -> list[dict[str, Any]]:
        """Close the session and return what it said, in order."""
        use_channel_factory(None)
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()
        self._server.close()
        return self.messages


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeAgent:
    monkeypatch.setenv("PERIFLOW_SESSION", str(tmp_path / "agent.sock"))
    return FakeAgent(tmp_path / "agent.sock")
