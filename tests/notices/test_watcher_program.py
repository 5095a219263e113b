"""``python -m periflow_ray.runtime.notices.watcher`` as a cloud machine runs it, with a real Ray node on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from support.metadata_servers import FakeAws, FakeAzure, FakeMetadata, serve_metadata

from periflow_ray.processes.keeper import find_descendants

WATCHER = "periflow_ray.runtime.notices.watcher"
STAND_IN = Path(__file__).parents[1] / "support" / "ray_stand_in.py"
END_DEADLINE_S = 30.0


class RayNode:
    """A Ray cluster of one node, with token authentication."""

    def __init__(self, temp_dir: Path) -> None:
        token_path = temp_dir / "token"
        token_path.write_text("0123456789abcdef" * 4)
        token_path.chmod(0o600)
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_path),
            "RAY_TMPDIR": str(temp_dir),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(STAND_IN)],
            env={**clean_environment(), **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(temp_dir / "stderr.txt").open("wb"),
            text=True,
        )
        self.address, self.node_id = self.ask("address")

    def ask(self, question: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def deadline_unix_s(self) -> float | None:
        """Of the node's drain in Ray's own table."""
        deadline_unix_ms = self.ask("draining").get(self.node_id)
        return None if deadline_unix_ms is None else deadline_unix_ms / 1000


class WatcherProgram:
    """A running watcher and the lines it has written, without their times."""

    def __init__(self, log_path: Path, service: FakeMetadata, *options: str, **environment: str) -> None:
        self._log_path = log_path
        with log_path.open("wb") as log_file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", WATCHER, *options],
                env={**clean_environment(), "PERIFLOW_METADATA_ENDPOINT": service.endpoint, **environment},
                stdin=subprocess.DEVNULL,
                stderr=log_file,
            )

    def lines(self) -> list[str]:
        stamp = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC preemption watcher: ")
        return [stamp.sub("", line) for line in self._log_path.read_text().splitlines()]

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_DEADLINE_S)


def clean_environment() -> dict[str, str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**{name: value for name, value in os.environ.items() if not name.startswith("RAY_")}, "PYTHONPATH": paths}


@contextlib.contextmanager
def run_ray_node() -> Iterator[RayNode]:
    # Ray's sockets lie below it, and their paths are limited to about 100 characters.
    with tempfile.TemporaryDirectory(prefix="pf-", ignore_cleanup_errors=True) as directory:
        node = RayNode(Path(directory))
        yield node
        assert node.process.stdin is not None
        node.process.stdin.close()
        node.process.wait(END_DEADLINE_S)


@pytest.fixture(scope="module")
def ray_node() -> Iterator[RayNode]:
    with run_ray_node() as node:
        yield node


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., WatcherProgram]]:
    """Starts a watcher that does not outlive the test."""
    with contextlib.ExitStack() as started:

        def start_watcher(service: FakeMetadata, *options: str, **environment: str) -> WatcherProgram:
            watcher = WatcherProgram(tmp_path / "watcher.log", service, *options, **environment)
            started.callback(watcher.process.wait)
            started.callback(watcher.process.kill)
            return watcher

        yield start_watcher


WaitUntil = Callable[[Callable[[], bool]], None]


@pytest.mark.ray
def test_azure_takes_a_machine_whose_work_is_saved(ray_node: RayNode, start: Any, wait_until: WaitUntil):
    with serve_metadata(FakeAzure()) as azure:
        watcher = start(azure, "--address", ray_node.address, "--interval", "0.1", **ray_node.environment)
        wait_until(lambda: watcher.lines() == ["watching Azure's notices"])
        deadline_unix_s = int(time.time()) + 100
        not_before = formatdate(deadline_unix_s, usegmt=True)
        azure.announce("Preempt", "event-1", not_before=not_before)
        wait_until(lambda: ray_node.deadline_unix_s() == deadline_unix_s)

        # Two jobs share the machine: one has saved, the other is still at it.
        ray_node.ask(f"saving {ray_node.node_id} 2")
        ray_node.ask(f"saved {ray_node.node_id} 1")
        num_requests = len(azure.requests)
        wait_until(lambda: len(azure.requests) >= num_requests + 50)
        assert azure.started == []

        ray_node.ask(f"saved {ray_node.node_id} 2")
        wait_until(lambda: azure.started == ["event-1"])
        assert ray_node.deadline_unix_s() <= time.time()
        wait_until(lambda: "told Azure that it may take this machine now" in watcher.lines())
        assert watcher.end() == 0
    (_, notice, *others) = watcher.lines()
    reason = f"Azure takes this spot VM back not before {not_before} (event: Preempt)"
    assert re.fullmatch(re.escape(reason) + r"; (100|9\d) s left, draining this machine in Ray", notice)
    assert others == [
        f"drained Ray node {ray_node.node_id}",
        "the work on this machine is saved or has ended",
        "told Azure that it may take this machine now",
        "ended; 0 requests to the metadata service failed",
    ]


@pytest.mark.ray
def test_aws_interrupts_a_machine_after_its_metadata_service_was_away(
    ray_node: RayNode, start: Any, wait_until: WaitUntil
):
    aws = FakeAws()
    deadline_unix_s = int(time.time()) + 120
    stated = datetime.fromtimestamp(deadline_unix_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    with serve_metadata(aws):
        options = ("--cloud", "aws", "--node-id", ray_node.node_id, "--interval", "0.1")
        watcher = start(aws, *options, RAY_ADDRESS=ray_node.address, **ray_node.environment)
        wait_until(lambda: len(aws.requests) > 3)
    wait_until(lambda: len(watcher.lines()) == 2)
    aws.interruption = json.dumps({"action": "terminate", "time": stated})
    with serve_metadata(aws):
        wait_until(lambda: ray_node.deadline_unix_s() == deadline_unix_s)
        wait_until(lambda: len(watcher.lines()) == 5)
        assert watcher.end() == 0
    lines = watcher.lines()
    assert lines[0] == "watching AWS's notices"
    assert lines[1].startswith("the metadata service fails, trying again: http://127.0.0.1:")
    assert lines[2].startswith("the metadata service answers again, after ")
    assert lines[3].startswith(f"AWS takes this spot instance back at {stated} (action: terminate); ")
    assert lines[4] == f"drained Ray node {ray_node.node_id}"


@pytest.mark.long
@pytest.mark.ray
def test_azure_takes_a_machine_without_work(start: Any, wait_until: WaitUntil):
    with run_ray_node() as node, serve_metadata(FakeAzure()) as azure:
        watcher = start(azure, "--address", node.address, **node.environment)
        azure.announce("Preempt", "event-1", not_before=formatdate(time.time() + 100, usegmt=True))
        wait_until(lambda: node.deadline_unix_s() is not None)
        assert azure.started == []
        node.ask("rest")
        wait_until(lambda: azure.started == ["event-1"])
        assert watcher.end() == 0


@pytest.mark.ray
def test_a_node_that_ray_does_not_know_is_not_drained(ray_node: RayNode, start: Any, wait_until: WaitUntil):
    with serve_metadata(FakeAzure()) as azure:
        azure.announce("Preempt", "event-1")
        unknown = "ab" * 28
        watcher = start(azure, "--address", ray_node.address, "--node-id", unknown, **ray_node.environment)
        wait_until(
            lambda: watcher.lines()[-1:] == [f"trying again until the deadline: Ray has no living node {unknown}"]
        )
        assert watcher.end() == 0


def test_a_cluster_that_does_not_answer(start: Any, wait_until: WaitUntil):
    # The port is bound, so that nobody else takes it, and nobody listens.
    with serve_metadata(FakeAzure()) as azure, socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        azure.announce("Preempt", "event-1")
        watcher = start(azure, "--address", address)
        wait_until(lambda: len(watcher.lines()) == 3)
        assert watcher.end() == 0
    assert watcher.lines()[2] == (
        f"trying again until the deadline: Ray's GCS at {address} does not answer: [Errno 111] Connection refused"
    )


def test_waiting_needs_no_ray(start: Any, wait_until: WaitUntil):
    with serve_metadata(FakeAws()) as aws:
        watcher = start(aws, "--interval", "0.1")
        wait_until(lambda: len(aws.requests) > 10)
        pids = [watcher.process.pid, *find_descendants(watcher.process.pid)]
        loaded = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids)
        assert watcher.end() == 0
    assert "_raylet" not in loaded


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        (["--cloud", "ibm"], {}, "argument --cloud: invalid choice: 'ibm'"),
        (
            ["--interval", "60"],
            {},
            "Error: --interval 60: must be from 0.1 to 10 seconds, because some clouds give 30 s of notice\n",
        ),
        (["--node-id", "7"], {}, "Error: --node-id '7': must be a Ray node id, 56 hexadecimal digits\n"),
        (
            ["--address", "http://head:6379"],
            {},
            "Error: --address 'http://head:6379': must be HOST:PORT of the Ray cluster's GCS, or auto\n",
        ),
        (
            [],
            {"RAY_ADDRESS": "ray://head:10001"},
            "Error: RAY_ADDRESS 'ray://head:10001': must be HOST:PORT of the Ray cluster's GCS, or auto\n",
        ),
        (
            [],
            {"PERIFLOW_METADATA_ENDPOINT": "https://127.0.0.1"},
            "Error: metadata endpoint 'https://127.0.0.1': must look like http://169.254.169.254 or http://HOST:PORT\n",
        ),
    ],
)
def test_wrong_options_end_it_with_a_message(options: list[str], environment: dict[str, str], message: str):
    ended = subprocess.run(
        [sys.executable, "-m", WATCHER, *options],
        env={**clean_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
