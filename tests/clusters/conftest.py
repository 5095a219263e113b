"""One cluster for the tests of this folder, whose machines live as long as no test takes them away."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.hash_chain import HashChain
from support.machines import Cluster, Machine, NoticeWatcher, run_cluster
from support.metadata_servers import FakeMetadata


# Of a package (hence this folder's __init__.py): the head is the same for all, and nothing of it outlives them.
@pytest.fixture(scope="package")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster without machines."""
    with run_cluster(tmp_path_factory.mktemp("storage")) as cluster:
        yield cluster


@pytest.fixture
def cluster(head: Cluster) -> Cluster:
    """The cluster with its head; which other machines it has is for the test to say."""
    if head.head.is_off:
        head.start_head()
    return head


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path) -> Callable[..., int]:
    """Submits a chain to the cluster; returns the job's number."""

    def submit_chain(chain: HashChain, *options: object) -> int:
        return cluster.submit(*chain.write(tmp_path), *options)

    return submit_chain


@pytest.fixture
def watch(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[[Machine, FakeMetadata], NoticeWatcher]]:
    """Starts the watcher of a machine, whose cloud is a metadata service on loopback."""
    with contextlib.ExitStack() as started:

        def start_watcher(machine: Machine, service: FakeMetadata) -> NoticeWatcher:
            watcher = NoticeWatcher(cluster, machine, service.endpoint, tmp_path / f"watcher-{machine.name}.log")
            started.callback(watcher.end)
            return watcher

        yield start_watcher
