from __future__ import annotations

import json

import pytest

from periflow_ray.plan import load_catalogue


def test_the_whole_catalogue_is_listed_in_its_order(run_cli):
    vms = json.loads(run_cli("vm", "list", "-o", "json").stdout)
    assert [vm["name"] for vm in vms] == list(load_catalogue())
    rows = [line for line in run_cli("vm", "list").stdout.splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == list(load_catalogue())


def test_one_vm_as_a_table(run_cli):
    result = run_cli("vm", "list", "--cloud", "local")
    assert (result.exit_code, result.stderr) == (0, "")
    assert (
        result.stdout
        == """\
┏━━━━━━━┳━━━━━━━┳━━━━━━━━┳━━━━━━━━━━━━━━━┳━━━━━━━━┳━━━━━━━━━━━━┳━━━━━━━━━━━━┳━━━━━━┳━━━━━━━━┳━━━━━━┳━━━━━━━━━━┓
┃ VM    ┃ Cloud ┃ Region ┃ Instance type ┃ Device ┃ Device Cnt ┃ GPU Memory ┃ vCPU ┃ Memory ┃ Spot ┃ USD/hour ┃
┡━━━━━━━╇━━━━━━━╇━━━━━━━━╇━━━━━━━━━━━━━━━╇━━━━━━━━╇━━━━━━━━━━━━╇━━━━━━━━━━━━╇━━━━━━╇━━━━━━━━╇━━━━━━╇━━━━━━━━━━┩
│ local │ local │ -      │ -             │ CPU    │ 1          │ -          │ -    │ -      │ N    │ -        │
└───────┴───────┴────────┴───────────────┴────────┴────────────┴────────────┴──────┴────────┴──────┴──────────┘
"""
    )


@pytest.mark.parametrize(
    ("options", "nearest"),
    [(["--cloud", "azzure"], "azure"), (["--device", "h1000"], "H100"), (["--region", "us-eastt-1"], "us-east-1")],
)
def test_a_wrong_filter_is_no_empty_table(run_cli, options, nearest):
    result = run_cli("vm", "list", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"Did you mean '{nearest}'?" in result.stderr


def test_filters_that_exclude_each_other_say_so(run_cli):
    result = run_cli("vm", "list", "--cloud", "azure", "--region", "us-east-1")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "No VM type is as all of these options want it. Leave one of them out.\n"


def test_filters_combine(run_cli):
    options = ["--cloud", "azure", "--device", "v100", "--region", "eastus", "--num-devices", "4", "--spot"]
    vms = json.loads(run_cli("vm", "list", "-o", "json", *options).stdout)
    assert [(vm["name"], vm["successor"]) for vm in vms] == [
        ("azure-16gb-v100-4g-eastus-spot", "azure-80gb-a100-4g-eastus-spot"),
        ("azure-16gb-v100-4g-nc24rs-v3-eastus-spot", "azure-80gb-a100-4g-eastus-spot"),
    ]


def test_prices_come_with_their_source(run_cli):
    result = run_cli("vm", "list", "--cloud", "aws", "--device", "H200", "--region", "us-east-1", "--on-demand")
    assert "│ 63.30    │" in result.stdout
    assert result.stderr.startswith("Prices: AWS prices for Linux")


def test_of_a_spot_vm_the_prices_of_its_zones_are_shown(run_cli):
    rows = run_cli("vm", "list", "--device", "V100", "--region", "us-east-1", "--num-devices", "4", "--spot").stdout
    assert "│ 1.49 - 2.00 │" in rows
