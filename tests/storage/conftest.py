"""Storage roots on every kind of storage, for the tests that all of them have to pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
from support.drawers import drawers
from support.fault_proxy import FaultProxy
from support.storage_servers import StorageServer

from periflow_ray.store.root import StorageRoot

KINDS = ("local", "s3-moto", "s3-rclone", "azure", "memory", "drawer")
FIXTURE_OF_KIND = {"s3-moto": "moto_server", "s3-rclone": "rclone_server", "azure": "azurite_server"}


# Two servers of S3 have one meaning of keys. Moto's adds conditional writes, and errors that are planned: the tests of
# those name it, and all others go through rclone's, and through both with scripts/test --all.
USUAL_KINDS = [pytest.param(kind, marks=pytest.mark.long) if kind == "s3-moto" else kind for kind in KINDS]


# Session-wide like the servers: they start before a test's children are looked at.
@pytest.fixture(scope="session", params=USUAL_KINDS)
def storage(request: pytest.FixtureRequest) -> StorageServer | str:
    """Each kind of storage in turn: its server, or its name where there is none."""
    fixture = FIXTURE_OF_KIND.get(request.param)
    return request.param if fixture is None else request.getfixturevalue(fixture)


@pytest.fixture
def set_variables(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str]], None]:
    """Sets environment variables for one test: ``set_variables(server.environment)``."""

    def set_all(variables: Mapping[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.fixture
def any_root(
    storage: StorageServer | str, tmp_path: Path, set_variables: Callable[[Mapping[str, str]], None]
) -> Iterator[StorageRoot]:
    """An empty storage root of each kind."""
    if isinstance(storage, StorageServer):
        set_variables(storage.environment)
        yield StorageRoot(storage.make_uri(f"tests/{uuid4().hex}"))
    elif storage == "local":
        yield StorageRoot(str(tmp_path / "storage"))
    elif storage == "drawer":
        with drawers():
            yield StorageRoot("drawer://cupboard/storage")
    else:
        yield StorageRoot("memory://bucket/storage")
        fsspec.filesystem("memory").store.clear()
        fsspec.filesystem("memory").pseudo_dirs[:] = [""]


# By name and not by parameters of ``storage``: the proxy stands before the servers alone.
@pytest.fixture(scope="session", params=["s3-moto", "azure"])
def proxied_server(request: pytest.FixtureRequest) -> StorageServer:
    """Each server that the proxy stands in front of, in turn."""
    server: StorageServer = request.getfixturevalue(FIXTURE_OF_KIND[request.param])
    return server


@pytest.fixture
def proxy(proxied_server: StorageServer, set_variables: Callable[[Mapping[str, str]], None]) -> Iterator[FaultProxy]:
    """A proxy in front of each server; a root of ``proxied_server.make_uri(...)`` is reached through it."""
    with FaultProxy(proxied_server.port) as proxy:
        set_variables(proxied_server.reached_through(proxy.port))
        yield proxy
