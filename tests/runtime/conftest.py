"""A monitor without Ray, on its own loop in a thread, and those who speak to it."""

from __future__ import annotations

import asyncio
import functools
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import ray
from injected_errors import TIMES, Turns
from node_run import NodeRun, make_node_run
from ray.experimental import internal_kv
from simulated_cluster import FakeCluster, SlowRoot
from simulated_nodes import Node, ObservedMonitor

from periflow_ray.runtime.member import sandbox as sandbox_module
from periflow_ray.runtime.monitor import actor as monitor_module
from periflow_ray.runtime.monitor import attempt as attempt_module
from periflow_ray.runtime.monitor import membership as membership_module
from periflow_ray.runtime.monitor.in_process import InProcessMonitor
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.store.root import StorageRoot

DEADLINE_S = 60.0


@pytest.fixture
def root(tmp_path: Path) -> StorageRoot:
    """An empty storage root."""
    return StorageRoot(str(tmp_path / "storage"))


@pytest.fixture
def sandboxes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sandboxes of the test's own, for whose sockets the path of ``tmp_path`` may be too long."""
    with tempfile.TemporaryDirectory(prefix="pf-", dir="/tmp") as directory:
        monkeypatch.setattr(sandbox_module, "_base_dir", lambda: Path(directory) / "sandboxes")
        yield


@pytest.fixture
def make_run(root: StorageRoot) -> Callable[..., NodeRun]:
    """Makes a node's run of a command: ``make_run("echo $A", image, env_var={"A": "b"})``."""
    return functools.partial(make_node_run, root)


@pytest.fixture
def run_monitor(root: StorageRoot, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a scenario on the loop of job 1's monitor: ``run_monitor(scenario, num_members=2)``."""
    # The steps of simulated ranks take milliseconds.
    monkeypatch.setattr(membership_module, "REPORT_INTERVAL_S", 0.02)
    monkeypatch.setattr(membership_module, "MAX_REPORTS_PER_S", 1e6)

    def run(
        scenario: Callable[[ObservedMonitor], Awaitable[None]],
        num_members: int = 2,
        retention: Retention | None = None,
        max_failures: int = -1,
        hang_timeout_s: float | None = None,
        root: StorageRoot = root,
        driver_id: str | None = None,
    ) -> None:
        rules = JobRules(4 // num_members, max_failures, retention or Retention(), hang_timeout_s, driver_id=driver_id)
        monitor: ObservedMonitor

        def make() -> ObservedMonitor:
            nonlocal monitor
            monitor = ObservedMonitor(root, 1, rules, num_members)
            return monitor

        with InProcessMonitor(make) as client:
            monitor.client = client
            client.run(lambda _: asyncio.wait_for(scenario(monitor), DEADLINE_S))

    return run


@pytest.fixture
def quick_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The speed is known at once: what simulated nodes report is never old."""
    monkeypatch.setattr(attempt_module, "MIN_SPEED_SPAN_S", 0.0)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """Ray as far as the monitor looks at it; it looks all the time."""
    fake = FakeCluster()
    monkeypatch.setattr(monitor_module, "WATCH_INTERVAL_S", 0.01)
    monkeypatch.setattr(ray._private.state.state, "get_draining_nodes", fake.read_draining)
    monkeypatch.setattr(internal_kv, "_internal_kv_put", fake.put)
    monkeypatch.setattr(internal_kv, "_internal_kv_del", fake.delete)
    return fake


@pytest.fixture
def slow_root(root: StorageRoot) -> Iterator[SlowRoot]:
    """The same storage, with writes that wait: ``slow_root.hold("manifest.json")``."""
    slow = SlowRoot(root.uri)
    yield slow
    slow.let_go()


@pytest.fixture
def nodes(root: StorageRoot, tmp_path: Path) -> Callable[..., list[Node]]:
    """Makes nodes 0, 1, ... of a monitor, each with a shared and an own file in its output directory."""

    def make(monitor: ObservedMonitor, num_nodes: int = 2) -> list[Node]:
        made = [Node(monitor, root, tmp_path, node_rank) for node_rank in range(num_nodes)]
        for node in made:
            (node.output_dir / "model.pt").write_bytes(b"weights")
            (node.output_dir / "rng.pt").write_bytes(b"node %d" % node.node_rank)
        return made

    return make


@pytest.fixture(params=TIMES)
def turns(request: pytest.FixtureRequest) -> Turns:
    """The turns of a loop, of which the first, the second or the last one fails."""
    return Turns(request.param)


@pytest.fixture
def problems() -> list[str]:
    """What was told to the user."""
    return []
