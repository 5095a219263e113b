from __future__ import annotations

from pathlib import Path

import pytest
import yaml

VM = "aws-96gb-rtx-pro-6000-1g-g7e-4xlarge-us-east-1"


def test_a_cluster_of_any_vm_type_is_rendered(run_cli):
    result = run_cli("cluster", "render", "--vm", f"{VM}-spot", "--vm", VM, "--max-nodes", "7", "--disk-gib", "500")
    assert (result.exit_code, result.stderr) == (0, "")
    config = yaml.safe_load(result.stdout)
    assert (config["cluster_name"], config["max_workers"]) == ("aws-96gb-rtx-pro-6000-1g-g7e-4xlarge-us", 7)
    assert list(config["available_node_types"]) == ["head", f"{VM}-spot", VM]
    node_dir = Path(config["file_mounts"]["~/periflow-ray/bin"])
    assert (node_dir / "node.sh").is_file()


def test_a_cluster_has_the_name_that_it_is_given(run_cli):
    result = run_cli("cluster", "render", "--vm", "azure-16gb-t4-1g-eastus", "--name", "mine")
    config = yaml.safe_load(result.stdout)
    assert (config["cluster_name"], config["provider"]["resource_group"]) == ("mine", "periflow-ray-mine")


def test_of_a_vm_that_cannot_be_rented_any_more_the_successor_is_told(run_cli):
    result = run_cli("cluster", "render", "--vm", "azure-16gb-v100-4g-eastus-spot")
    assert yaml.safe_load(result.stdout)["cluster_name"] == "azure-16gb-v100-4g-eastus"
    assert result.stderr == (
        "Note: azure-16gb-v100-4g-eastus-spot was withdrawn by its provider on 2025-09-30; the nearest today is "
        "azure-80gb-a100-4g-eastus-spot.\n"
    )


@pytest.mark.parametrize(
    ("options", "exit_code", "message"),
    [
        (["--vm", "aws-16gb-t4-1g-us-east"], 2, "Did you mean"),
        (["--vm", VM, "--name", "My Cluster"], 2, "cluster name 'My Cluster' cannot be used"),
        (["--vm", VM, "--max-nodes", "0"], 2, "1 to 1000 nodes, not 0"),
        (["--vm", "local"], 2, "is this machine"),
        ([], 2, "Missing option '--vm'"),
    ],
)
def test_what_cannot_be_a_cluster_is_an_error(run_cli, options, exit_code, message):
    result = run_cli("cluster", "render", *options)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert message in result.stderr
