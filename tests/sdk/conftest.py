"""Sessions outside and inside a job; a job's ranks are sessions in threads, or processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from periflow_ray.runtime.command_jobs import session_server
from periflow_ray.runtime.command_jobs.session_server import SessionServer
from periflow_ray.sdk.session import Session
from periflow_ray.sdk.socket_channel import SocketChannel

JOB_VARIABLES = (
    "CKPT_DIR",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "NPROC_PER_NODE",
    "PERIFLOW_SESSION",
    "PERIFLOW_SESSION_VERSION",
    "PERIFLOW_ATTEMPT",
    "PROCESSED_ITERS",
    "RANK",
    "WORLD_SIZE",
)


@pytest.fixture(autouse=True)
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of its own, outside any job."""
    for name in JOB_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def open_sessions() -> Iterator[list[Session]]:
    """Sessions that are closed at the end of the test."""
    sessions: list[Session] = []
    yield sessions
    for session in sessions:
        session.use_channel_factory(None)


@pytest.fixture
def session(open_sessions: list[Session]) -> Session:
    """A session like the one behind ``pf.init``, but nobody else's."""
    open_sessions.append(Session())
    return open_sessions[0]


def rank_environment(rank: int, num_ranks: int) -> dict[str, str]:
    """What torchrun tells a rank of a job with one node."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(num_ranks)}


class Member:
    """A node's member as far as its session server goes; its snapshots and notes are kept."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path
        self.snapshots: list[int] = []
        self.num_replacing = 0
        self.notes: list[str] = []
        self.late: list[int] = []
        self.on_snapshot: Callable[[int], None] = lambda step: None
        self.server = SessionServer(socket_path, self._save_snapshot, self.notes.append, self.late.append)
        self.server.start()

    def _save_snapshot(self, step: int, replace_waiting: bool) -> None:
        self.on_snapshot(step)
        self.num_replacing += replace_waiting
        self.snapshots.append(step)


@pytest.fixture
def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Member]:
    """A member that waits for all ranks to connect, however slow this machine is."""
    monkeypatch.setattr(session_server, "CONNECT_WINDOW_S", 3600.0)
    # Some of the ranks here are still connected when the member closes.
    monkeypatch.setattr(session_server, "FINISH_TIMEOUT_S", 1.0)
    running = Member(tmp_path / "member.sock")
    yield running
    running.server.close()


@pytest.fixture
def join_rank(
    member: Member, open_sessions: list[Session], monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], Session]:
    """Opens the session of a rank in this process: ``session = join_rank(1, of=2)``."""

    def join(rank: int, of: int = 1, total_train_steps: int | None = None) -> Session:
        for name, value in rank_environment(rank, of).items():
            monkeypatch.setenv(name, value)
        session = Session()
        open_sessions.append(session)
        session.use_channel_factory(lambda local_log_name: SocketChannel(str(member.socket_path)))
        session.init(total_train_steps)
        return session

    return join


class RankProcess:
    """A script of one rank that prints lines and waits for ``go`` between its parts."""

    def __init__(self, script: str, rank: int, num_ranks: int, socket_path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import sys\nimport periflow_ray as pf\n" + script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **rank_environment(rank, num_ranks), "PERIFLOW_SESSION": str(socket_path)},
        )

    def read_line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def go(self) -> None:
        """Give it a line to read."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def finish(self) -> tuple[int, str, str]:
        """Wait for its end: exit code, the rest of its output, its errors."""
        output, errors = self.process.communicate(timeout=60)
        return self.process.returncode, output, errors


@pytest.fixture
def start_rank(member: Member) -> Iterator[Callable[..., RankProcess]]:
    """Starts a rank as a process; ``pf`` is imported and ``sys.stdin.readline()`` waits for ``go``."""
    ranks: list[RankProcess] = []

    def start(script: str, rank: int = 0, of: int = 1, socket_path: Path | None = None) -> RankProcess:
        ranks.append(RankProcess(script, rank, of, socket_path or member.socket_path))
        return ranks[-1]

    yield start
    for rank in ranks:
        rank.process.kill()
        rank.process.communicate()
