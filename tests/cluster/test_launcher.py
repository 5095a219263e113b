"""What is made of the output of Ray's cluster launcher; a script with that module's name says what Ray has said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.ray_up import GOOD, RayUp

from periflow_ray.cluster import launcher
from periflow_ray.cluster.launcher import launch_head
from periflow_ray.cluster.providers.provider import ProviderError
from periflow_ray.errors import ClusterError

REFUSED = """\
Acquiring an up-to-date head node
botocore.exceptions.ClientError: An error occurred ({code}) when calling the RunInstances operation: {text}
"""
# As boto3 words what it would have tried again, and Ray what it has tried in every zone.
NO_CAPACITY = """\
Acquiring an up-to-date head node
  create_instances: Attempt failed with An error occurred (InsufficientInstanceCapacity) when calling the RunInstances \
operation (reached max retries: 0): None in {zone}., retrying.
botocore.exceptions.ClientError: An error occurred (InsufficientInstanceCapacity) when calling the RunInstances \
operation (reached max retries: 0): None in {zone}.
"""
NEW_PROFILE = REFUSED.format(
    code="InvalidParameterValue",
    text="Value (arn:aws:iam::1:instance-profile/periflow-ray-mine-head) for parameter iamInstanceProfile.arn is "
    "invalid. Invalid IAM Instance Profile ARN",
)
AZURE = """\
Acquiring an up-to-date head node
azure.core.exceptions.HttpResponseError: (InvalidTemplateDeployment) The template deployment failed.
Code: QuotaExceeded
Message: Operation could not be completed as it results in exceeding approved Total Regional Cores quota.
"""


@pytest.fixture
def ray_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RayUp:
    directory = tmp_path / "other-ray"
    monkeypatch.setenv("PYTHONPATH", f"{directory}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(launcher, "_PAUSE_S", 0.01)
    return RayUp(directory)


def launch(tmp_path: Path) -> list[str]:
    told: list[str] = []
    launch_head(tmp_path / "cluster.yaml", tmp_path / "up.log", told.append)
    return told


def test_each_phase_is_told_when_it_begins_and_all_of_the_output_is_kept(ray_up: RayUp, tmp_path: Path) -> None:
    ray_up.answer(GOOD, 0)
    assert launch(tmp_path) == [
        "launching the head",
        "the head boots",
        "copying files to the head",
        "installing periflow-ray on the head",
        "starting Ray on the head",
    ]
    assert (tmp_path / "up.log").read_text() == GOOD
    # Without a question to anybody, and not from what an earlier cluster has left.
    assert ray_up.calls == [str(["--yes", "--no-config-cache", str(tmp_path / "cluster.yaml")])]


@pytest.mark.parametrize(
    ("output", "code", "text"),
    [
        (
            REFUSED.format(
                code="VcpuLimitExceeded", text="You have requested more vCPU capacity than your limit of 0."
            ),
            "VcpuLimitExceeded",
            "You have requested more vCPU capacity than your limit of 0.",
        ),
        (
            REFUSED.format(code="InvalidKeyPair.NotFound", text="The key pair 'periflow-ray-mine' does not exist"),
            "InvalidKeyPair.NotFound",
            "The key pair 'periflow-ray-mine' does not exist",
        ),
        (
            AZURE,
            "QuotaExceeded",
            "Operation could not be completed as it results in exceeding approved Total Regional Cores quota.",
        ),
        # Ray asks one zone after another; the last answer is the one that counts.
        (
            NO_CAPACITY.format(zone="us-east-1a") + NO_CAPACITY.format(zone="us-east-1b"),
            "InsufficientInstanceCapacity",
            "None in us-east-1b.",
        ),
        (
            NO_CAPACITY.format(zone="us-east-1a")
            + "ray.autoscaler.node_launch_exception.NodeLaunchException: Node Launch Exception "
            "(InsufficientInstanceCapacity): None in us-east-1c.\n",
            "InsufficientInstanceCapacity",
            "None in us-east-1c.",
        ),
    ],
)
def test_a_refusal_of_the_provider_is_told_by_its_code(
    ray_up: RayUp, tmp_path: Path, output: str, code: str, text: str
) -> None:
    ray_up.answer(output, 1)
    with pytest.raises(ProviderError) as caught:
        launch(tmp_path)
    assert (caught.value.code, str(caught.value)) == (code, f"the provider refused the head: {code}: {text}")
    assert len(ray_up.calls) == 1


def test_a_role_that_ec2_does_not_know_yet_is_waited_for(ray_up: RayUp, tmp_path: Path) -> None:
    ray_up.answer(NEW_PROFILE, 1)
    ray_up.answer(NEW_PROFILE, 1)
    ray_up.answer(GOOD, 0)
    told = launch(tmp_path)
    assert told.count("waiting until EC2 knows the new roles") == 2
    assert told[-1] == "starting Ray on the head"
    assert len(ray_up.calls) == 3


def test_a_role_that_ec2_never_knows_is_an_error(ray_up: RayUp, tmp_path: Path) -> None:
    ray_up.answer(NEW_PROFILE, 1)
    with pytest.raises(ProviderError, match="Invalid IAM Instance Profile ARN"):
        launch(tmp_path)
    assert len(ray_up.calls) == 4


def test_a_setup_that_fails_shows_the_end_of_the_output_and_where_all_of_it_is(ray_up: RayUp, tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(40)]
    # One zone had none; that is not why.
    ray_up.answer(
        NO_CAPACITY.format(zone="us-east-1a") + GOOD + "\n".join(lines) + "\nthere is no token in the node's home\n", 1
    )
    with pytest.raises(ClusterError) as caught:
        launch(tmp_path)
    assert not isinstance(caught.value, ProviderError)
    message = str(caught.value).splitlines()
    assert message[0] == f"the head could not be set up (all of it: {tmp_path / 'up.log'}):"
    assert message[-2:] == ["  line 39", "  there is no token in the node's home"]
    assert len(message) < 20
    assert "line 0\n" in (tmp_path / "up.log").read_text()
