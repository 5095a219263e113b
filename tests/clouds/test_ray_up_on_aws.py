"""``ray up`` with a file of cluster_configs/, as it is, on the cloud in a box: up, a worker, a notice, and down."""

from __future__ import annotations

import pytest
from support.cloud.box import Box
from support.cloud.launched import Launched

pytestmark = [pytest.mark.clouds, pytest.mark.ray, pytest.mark.timeout(600)]

CONFIG = "cluster_configs/aws-16gb-v100-4g-us-west-2.yaml"
SPOT_VM = "aws-16gb-v100-4g-us-west-2-spot"


@pytest.fixture(scope="module")
def cluster(aws: Box) -> Launched:
    """The cluster of the file, up."""
    cluster = Launched(aws, CONFIG)
    cluster.up()
    return cluster


def test_a_job_gets_the_spot_vm_that_it_asks_for_and_a_notice_reaches_ray(cluster: Launched) -> None:
    assert set(cluster.find_running()) == {"head"}
    host = cluster.run_on(SPOT_VM)
    worker = cluster.find_running()[SPOT_VM]
    assert worker["is_spot"]
    assert host == f"ip-{worker['address'].replace('.', '-')}"
    cluster.assert_token_is_private()
    cluster.announce_loss(worker, notice_s=60)


def test_whoever_has_no_token_gets_nothing(cluster: Launched) -> None:
    cluster.assert_is_closed()


def test_down_leaves_no_machine(cluster: Launched) -> None:
    cluster.down()
    assert cluster.find_running() == {}
