"""For all tests: nothing touches the user's directories, and no test leaves variables or processes behind."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.children import find_child_pids, wait_for_new_children
from support.container_images import Podman, serve_podman
from support.storage_servers import (
    AZURITE_MISSING,
    StorageServer,
    find_azurite,
    serve_azurite,
    serve_moto,
    serve_rclone,
)

pytest_plugins = ["support.durations", "support.lanes"]
# pytest's own, and what libraries set once and for all when a test is the first to import or use them.
TOLERATED_VARIABLES = frozenset({"PYTEST_CURRENT_TEST", "CRC32C_SW_MODE"})
TOLERATED_PREFIXES = ("RAY_", "KMP_", "OMP_", "TORCH", "PYTORCH_", "TF_", "TRANSFORMERS_")


@pytest.fixture(scope="session", autouse=True)
def _own_directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = dict(os.environ)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PERIFLOW_STORAGE"] = str(tmp_path_factory.mktemp("storage"))
    os.environ["PERIFLOW_CREDENTIALS_FILE"] = str(tmp_path_factory.mktemp("config") / "credentials.json")
    os.environ["PERIFLOW_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    # No test fetches the image that a template names, unless it has an engine of its own.
    os.environ["PERIFLOW_CONTAINER_ENGINE"] = ""
    os.environ["PERIFLOW_LOCAL_CLUSTER_DIR"] = str(tmp_path_factory.mktemp("local-cluster"))
    yield
    _restore_environment(before)


@pytest.fixture(autouse=True)
def _no_leaks(_own_directories: None) -> Iterator[None]:
    # Must not use monkeypatch: what a test sets with it is undone before this fixture looks.
    environment = dict(os.environ)
    children = find_child_pids()
    yield
    leaked_variables = _find_changed_variables(environment)
    _restore_environment(environment)
    leaked_children = wait_for_new_children(children)
    assert not leaked_variables, f"the test leaves environment variables behind: {leaked_variables}"
    assert not leaked_children, f"the test leaves child processes behind: {leaked_children}"


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageServer]:
    """An S3 server that lasts as long as the test run; its ``environment`` is for the test to set."""
    with serve_moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageServer]:
    """Another S3 server, with another idea of what is left open."""
    with serve_rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageServer]:
    """An Azure Blob server; tests that need it are skipped where it is not installed."""
    if find_azurite() is None:
        pytest.skip(AZURITE_MISSING)
    with serve_azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(scope="session")
def served_podman() -> Iterator[tuple[Podman, str]]:
    # The paths of its sockets must be short.
    with (
        tempfile.TemporaryDirectory(prefix="pf-podman-", dir="/tmp", ignore_cleanup_errors=True) as directory,
        serve_podman(Path(directory)) as served,
    ):
        yield served


@pytest.fixture
def podman(served_podman: tuple[Podman, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Podman]:
    """Podman as the engine that jobs find; afterwards there must be no container."""
    podman = served_podman[0]
    for name, value in podman.environment.items():
        monkeypatch.setenv(name, value)
    yield podman
    assert podman.list_containers() == []


@pytest.fixture
def image(served_podman: tuple[Podman, str]) -> str:
    """An image with bash and Python; its user is not root."""
    return served_podman[1]


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Waits for a condition with a deadline: ``wait_until(lambda: path.exists())``."""

    def wait(condition: Callable[[], bool], deadline_s: float = 30.0) -> None:
        end_s = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end_s, f"not true within {deadline_s} s"
            time.sleep(0.01)

    return wait


def _find_changed_variables(before: dict[str, str]) -> list[str]:
    changed = {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}
    return sorted(name for name in changed - TOLERATED_VARIABLES if not name.startswith(TOLERATED_PREFIXES))


def _restore_environment(before: dict[str, str]) -> None:
    for name in set(os.environ) - set(before) - TOLERATED_VARIABLES:
        del os.environ[name]
    os.environ.update(before)
