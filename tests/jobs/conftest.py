"""One embedded Ray cluster for all job tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from support.storage_servers import StorageServer
from support.workbench import Workbench, find_drivers, processes_with, wait_until

from periflow_ray.submit.local_cluster import LocalClusterDir, stop_local_cluster


# Of a package (hence this folder's __init__.py), so that the cluster ends before the tests of the next folder begin.
@pytest.fixture(scope="package")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    base = tmp_path_factory.mktemp("jobs")
    cluster_dir = base / "cluster"
    yield Workbench(base / "storage", cluster_dir)
    # A job's end is told before its driver has tidied up.
    wait_until(lambda: not find_drivers(cluster_dir), "the drivers end", 60)
    stop_local_cluster(LocalClusterDir(cluster_dir))
    wait_until(lambda: not processes_with(str(cluster_dir)), "the embedded cluster ends", 60)
    require_json(base / "storage")


def require_json(storage_dir: Path) -> None:
    """Whatever the jobs did, all that they have stored is JSON, which has no NaN and no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{path} has {constant}")

    for path in storage_dir.rglob("*"):
        parts = set(path.relative_to(storage_dir).parts)
        if "files" in parts or not path.is_file():
            continue
        if path.suffix == ".json":
            json.loads(path.read_bytes(), parse_constant=refuse)
        elif {"metrics", "events", "journal"} & parts:
            for line in path.read_bytes().splitlines():
                json.loads(line, parse_constant=refuse)


@pytest.fixture
def write_job(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Write a workspace with ``main.py`` and a template for it; returns both paths."""

    def write(
        script: str, *, command: str = "cd /workspace/app && python main.py", extra: str = ""
    ) -> tuple[Path, Path]:
        workspace = tmp_path / "app"
        workspace.mkdir(exist_ok=True)
        (workspace / "main.py").write_text(script)
        template = tmp_path / "pf-template.yml"
        template.write_text(
            f"""\
name: test-job
vm: azure-16gb-v100-1g-eastus-spot
num_devices: 1
job_setting:
  type: custom
  docker:
    image: friendliai/periflow:sdk
    command: |
      {command}
  workspace:
    mount_path: /workspace
checkpoint:
  output_checkpoint_dir: /workspace/ckpt
{extra}"""
        )
        return template, workspace

    return write


# Of the module's scope, so that the server starts before a test's children are looked at.
@pytest.fixture(scope="module", params=["moto_server", "azurite_server"], ids=["s3", "abfs"])
def cloud_server(request: pytest.FixtureRequest) -> StorageServer:
    server: StorageServer = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def cloud(cloud_server: StorageServer, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    """The workbench with a storage root in a bucket of S3, then in a container of Azure Blob."""
    return _open_on(cloud_server, workbench, monkeypatch)


@pytest.fixture
def s3(moto_server: StorageServer, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    """The workbench with a storage root in a bucket."""
    return _open_on(moto_server, workbench, monkeypatch)


def _open_on(server: StorageServer, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return workbench.on(server.make_uri(f"jobs/{uuid4().hex}"))
