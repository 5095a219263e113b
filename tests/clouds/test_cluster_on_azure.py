"""A cluster from VM names to a subscription with nothing of it, on Azure in a box; the tests go through its life."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from support.cloud.box import Box

pytestmark = [pytest.mark.clouds, pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = "s3://periflow/root"
VM = "azure-80gb-a100-4g-eastus-spot"
GROUP = "periflow-ray-mine"
UP = (
    *("periflow-ray", "cluster", "up", "--vm", VM, "--name", "mine", "--yes", "--ssh-from", "10.77.0.0/24"),
    *("--wheels", "cluster_configs/wheels", "--storage", ROOT),
)
DOWN = ("periflow-ray", "cluster", "down", "mine", "--yes", "--storage", ROOT)


def run(box: Box, *argv: str, timeout_s: float = 240.0) -> subprocess.CompletedProcess[str]:
    """A command of the user's, which succeeds."""
    done = box.run(*argv, timeout_s=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def find(box: Box, kind: str) -> list[dict[str, Any]]:
    return [each for each in box.ask("resources") if each["type"].endswith(f"/{kind}")]


@pytest.fixture(scope="module")
def cluster(azure: Box) -> Box:
    """A cluster that is up."""
    run(azure, "python", "-c", "import boto3; boto3.client('s3').create_bucket(Bucket='periflow')")
    print(run(azure, *UP))
    return azure


def test_up_makes_one_group_with_one_head(cluster: Box) -> None:
    status = json.loads(
        run(cluster, "periflow-ray", "cluster", "status", "mine", "--storage", ROOT, "-o", "json").stdout
    )
    (head,) = status["machines"]
    assert (status["status"], head["node_type"], head["state"]) == ("running", "head", "running")
    assert status["head_address"] == head["public_address"]
    assert {each["id"].split("/")[4] for each in cluster.ask("resources")} == {GROUP}


def test_down_leaves_nothing(cluster: Box) -> None:
    run(cluster, *DOWN)
    assert cluster.ask("resources") == []
