"""``ray up`` with a file of cluster_configs/ and the user's subscription, on Azure in a box."""

from __future__ import annotations

import pytest
from support.cloud.arm_messages import SUBSCRIPTION_ID
from support.cloud.box import CHECKOUT, Box
from support.cloud.launched import Launched
from support.cloud.virtual_machines import REPOSITORY_DIR
from support.workbench import wait_until

pytestmark = [pytest.mark.clouds, pytest.mark.ray, pytest.mark.timeout(600)]

CONFIG = "cluster_configs/azure-16gb-v100-4g-eastus.yaml"
SPOT_VM = "azure-80gb-a100-4g-eastus-spot"


@pytest.fixture(scope="module")
def cluster(azure: Box) -> Launched:
    """The cluster of the file with the user's subscription, up."""
    text = (REPOSITORY_DIR / CONFIG).read_text()
    line = "  # subscription_id: 00000000-0000-0000-0000-000000000000\n"
    assert line in text
    azure.write(f"{CHECKOUT}/{CONFIG}", text.replace(line, f"  subscription_id: {SUBSCRIPTION_ID}\n"))
    cluster = Launched(azure, CONFIG)
    cluster.up()
    return cluster


def test_a_job_gets_the_spot_vm_that_it_asks_for_and_a_notice_reaches_ray(cluster: Launched) -> None:
    assert set(cluster.find_running()) == {"head"}
    host = cluster.run_on(SPOT_VM)
    worker = cluster.find_running()[SPOT_VM]
    assert worker["is_spot"]
    assert host == worker["instance"]
    cluster.announce_loss(worker, notice_s=60)
    # The watcher has acknowledged it then, long before its time.
    wait_until(lambda: SPOT_VM not in cluster.find_running(), "Azure takes the VM back, or Ray deletes it", 30)


def test_the_head_launches_by_its_own_identity(cluster: Launched) -> None:
    deployments = cluster.box.ask("calls", match=["PUT", "/deployments/"])
    assert [call["principal"] == "owner" for call in deployments] == [True, True, False]


def test_down_leaves_the_empty_group(cluster: Launched) -> None:
    # A VM that Azure took before Ray deleted it leaves these, and Ray does not find them any more.
    for kind in ("networkInterfaces", "publicIPAddresses"):
        for resource in cluster.box.ask("resources"):
            if resource["type"].endswith(kind) and "-worker-" in resource["name"]:
                cluster.box.ask("remove", resource_id=resource["id"])
    cluster.down()
    assert [resource["type"] for resource in cluster.box.ask("resources")] == ["Microsoft.Resources/resourceGroups"]
