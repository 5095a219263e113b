"""The cluster YAMLs are what Ray and the clouds take, and the folder is up to date."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import ray
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

from periflow_ray.cluster.config.collection import FOLDER, TUTORIAL_VMS, render_collection
from periflow_ray.cluster.config.render import VM_LABEL, render_yaml
from periflow_ray.cluster.config.spec import build_spec
from periflow_ray.errors import UsageError
from periflow_ray.plan.catalogue import find_vm, load_catalogue, local_vm

REPOSITORY_DIR = Path(__file__).parents[2]
FILES = {file.name: file.text for file in render_collection()}
# What Ray itself gives to each deployment.
GIVEN_BY_RAY = {
    *("adminUsername", "publicKey", "vmName", "vmTags", "vmCount", "provisionPublicIp", "msi", "nsg", "subnet", "zones")
}
ARM_TYPES = {"string": str, "int": int, "bool": bool, "object": dict, "array": list, "securestring": str}


def find_problems(text: str) -> list[str]:
    """What Ray or the cloud would refuse."""
    config = yaml.safe_load(text)
    validate_config(prepare_config(copy.deepcopy(config)))
    find = {"aws": find_aws_problems, "azure": find_azure_problems}[config["provider"]["type"]]
    return [
        f"{name}: {problem}"
        for name, node_type in config["available_node_types"].items()
        for problem in find(node_type["node_config"])
    ]


def find_aws_problems(node_config: dict[str, Any]) -> list[str]:
    shape = read_request_shape()
    request = {**node_config, "MinCount": 1, "MaxCount": 1, "SubnetId": "subnet-1", "TagSpecifications": []}
    report = ParamValidator().validate(request, shape)
    problems = [report.generate_report()] if report.has_errors() else []
    if node_config["InstanceType"] not in shape.members["InstanceType"].enum:
        problems.append(f"there is no instance type {node_config['InstanceType']}")
    options = node_config.get("InstanceMarketOptions", {})
    options_shape = shape.members["InstanceMarketOptions"]
    if options and options["MarketType"] not in options_shape.members["MarketType"].enum:
        problems.append(f"there is no market type {options['MarketType']}")
    return problems


@cache
def read_request_shape() -> Any:
    """What EC2 takes to run instances."""
    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def find_azure_problems(node_config: dict[str, Any]) -> list[str]:
    template = Path(ray.__file__).parent / "autoscaler/_private/_azure/azure-vm-template.json"
    parameters = json.loads(template.read_text())["parameters"]
    given = node_config["azure_arm_parameters"]
    problems = [f"{name} is no parameter" for name in given if name not in parameters]
    problems += [
        f"{name} is of another type"
        for name, value in given.items()
        if name in parameters and not isinstance(value, ARM_TYPES[parameters[name]["type"].lower()])
    ]
    needed = {name for name, parameter in parameters.items() if "defaultValue" not in parameter} - GIVEN_BY_RAY
    return problems + [f"{name} is missing" for name in sorted(needed - set(given))]


def test_the_folder_is_what_the_catalogue_says() -> None:
    stored = {path.name: path.read_text() for path in (REPOSITORY_DIR / FOLDER).glob("*.yaml")}
    assert stored == FILES, "run scripts/generate-cluster-configs"


def test_the_tutorials_vms_have_a_file_each() -> None:
    assert {f"{name}.yaml" for name in TUTORIAL_VMS} <= set(FILES)
    assert {"aws-mixed.yaml", "azure-mixed.yaml"} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_ray_and_the_cloud_take_each_file(name: str) -> None:
    assert find_problems(FILES[name]) == []


def test_every_instance_type_of_the_catalogue_makes_a_file_that_is_taken() -> None:
    # Sorted, so that as many as possible are in one region, and in one file.
    regions = sorted(load_catalogue().values(), key=lambda vm: vm.region not in ("us-east-1", "eastus"))
    vms_by_type = {vm.instance_type: vm for vm in reversed(regions) if vm.is_spot}
    vms_by_region = defaultdict(list)
    for vm in vms_by_type.values():
        vms_by_region[vm.cloud, vm.region] += [find_vm(vm.name.removesuffix("-spot")), vm]
    assert len(vms_by_type) > 70
    for region, vms in vms_by_region.items():
        assert find_problems(render_yaml(build_spec("mine", vms), "mine.yaml", "Mine.")) == [], region


@pytest.mark.parametrize("name", FILES)
def test_a_file_asks_for_what_a_job_needs_and_for_nothing_that_stays(name: str) -> None:
    config = yaml.safe_load(FILES[name])
    head, *workers = config["available_node_types"].items()
    assert (config["head_node_type"], head[1]["resources"]["GPU"]) == (head[0], 0)
    assert config["provider"]["cache_stopped_nodes"] is False
    assert config["cluster_name"] == name.removesuffix(".yaml")
    assert "~/.ray/auth_token" in config["file_mounts"]
    for vm_name, node_type in workers:
        vm = find_vm(vm_name)
        assert vm.retired_on is None
        assert (node_type["min_workers"], node_type["labels"]) == (0, {VM_LABEL: vm.name})
        assert node_type["resources"] == {
            "CPU": vm.num_vcpus,
            "GPU": vm.num_devices,
            f"accelerator_type:{vm.accelerator}": 1,
        }
        node_config = node_type["node_config"]
        if vm.cloud == "aws":
            assert node_config["InstanceType"] == vm.instance_type
            assert ("InstanceMarketOptions" in node_config) == vm.is_spot
            assert node_config["BlockDeviceMappings"][0]["Ebs"]["DeleteOnTermination"]
        else:
            parameters = node_config["azure_arm_parameters"]
            assert parameters["vmSize"] == vm.instance_type
            assert (parameters.get("priority"), parameters.get("evictionPolicy")) == (
                ("Spot", "Delete") if vm.is_spot else (None, None)
            )
    vms = [find_vm(vm_name) for vm_name, _ in workers]
    assert len({(vm.cloud, vm.region) for vm in vms}) == 1
    assert {vm.is_spot for vm in vms} == {True, False}


def test_the_file_of_a_withdrawn_type_names_its_successor() -> None:
    text = FILES["azure-16gb-v100-4g-eastus.yaml"]
    assert text.startswith(
        "# azure-16gb-v100-4g-eastus was withdrawn by its provider on 2025-09-30. This is what comes nearest to it:\n"
        "# Standard_NC96ads_A100_v4 in eastus: 4 x A100, 80 GiB each.\n"
    )


@pytest.mark.parametrize(
    ("name", "vm_names", "message"),
    [
        ("Mine", ["aws-16gb-t4-1g-us-east-1"], "cluster name 'Mine' cannot be used"),
        ("a b; rm", ["aws-16gb-t4-1g-us-east-1"], "cannot be used"),
        ("a" * 41, ["aws-16gb-t4-1g-us-east-1"], "cannot be used"),
        ("mine", [], "needs a VM type"),
        ("mine", ["aws-16gb-t4-1g-us-east-1", "aws-16gb-t4-1g-us-east-2"], "not in one region"),
        ("mine", ["aws-16gb-t4-1g-us-east-1", "azure-16gb-t4-1g-eastus"], "not in one region"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(name: str, vm_names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_spec(name, [find_vm(vm_name) for vm_name in vm_names])


def test_this_machine_is_no_vm_of_a_cluster() -> None:
    with pytest.raises(UsageError, match="is this machine"):
        build_spec("mine", [local_vm()])


@pytest.mark.parametrize("num_nodes", [0, 1001])
def test_a_cluster_has_some_nodes_and_not_too_many(num_nodes: int) -> None:
    with pytest.raises(UsageError, match="1 to 1000 nodes"):
        build_spec("mine", [find_vm("aws-16gb-t4-1g-us-east-1")], max_num_nodes=num_nodes)
