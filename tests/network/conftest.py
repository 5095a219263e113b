"""A Ray cluster on machines of its own, for tests that cut the network between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.namespace_cluster import RayCluster
from support.namespaces import Network, find_missing, open_network

_REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def _namespaces() -> None:
    missing = find_missing()
    if missing is not None:
        pytest.skip(missing)


@pytest.fixture
def network(_namespaces: None) -> Iterator[Network]:
    """A network without machines."""
    with open_network() as opened:
        yield opened


@pytest.fixture(scope="module")
def started_cluster(_namespaces: None) -> Iterator[RayCluster]:
    # Not the fixture above, which ends with each test.
    with open_network() as opened:
        yield RayCluster(opened, ["a", "b", "c"], {"PYTHONPATH": str(_REPOSITORY)})


@pytest.fixture
def cluster(started_cluster: RayCluster) -> RayCluster:
    """A head and three workers, all connected."""
    for worker in started_cluster.workers:
        started_cluster.bring_back(worker)
    return started_cluster
