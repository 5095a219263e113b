"""One embedded Ray cluster for all job tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from workbench import Workbench, processes_with, wait_until

from periflow_ray.submit.local_cluster import LocalClusterDir


@pytest.fixture(scope="session")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    base = tmp_path_factory.mktemp("jobs")
    cluster_dir = base / "cluster"
    yield Workbench(base / "storage", cluster_dir)
    cluster = LocalClusterDir(cluster_dir).read()
    if cluster is not None:
        os.kill(cluster.supervisor_pid, signal.SIGTERM)
        wait_until(lambda: not processes_with(str(cluster_dir)), "the embedded cluster ends", 60)


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
