"""What a cluster waits for, in words: the machines on their way, and why the provider refuses them."""

from __future__ import annotations

from pathlib import Path

import pytest

from periflow_ray.runtime import launches
from periflow_ray.runtime.launches import describe, describe_launches, read_refusals, shorten_refusal
from periflow_ray.runtime.ray_private import LaunchFacts

T4, V100 = "aws-16gb-t4-1g-us-east-1", "aws-16gb-v100-4g-us-east-1-spot"
# 2026-01-01 10:00:00 UTC
TEN_UNIX_S = 1_767_261_600.0
NO_CAPACITY = (
    "We currently do not have sufficient p3.8xlarge capacity in the Availability Zone you requested (us-east-1a)."
)
# As version 2 of Ray's autoscaler writes it, with what other modules say between.
MONITOR_LOG = f"""\
2026-01-01 10:00:01,117\tINFO monitor.py:140 -- session_name: session_2026-01-01_09-58-00_000000_100
2026-01-01 10:00:02,340\tINFO scheduler.py:1147 -- Adding 2 nodes of type {V100}.
2026-01-01 10:00:02,351\tINFO node_provider.py:483 -- Launching 2 nodes of type {V100}.
2026-01-01 10:00:04,002\tINFO node_provider.py:491 -- Failed to launch 2 nodes of type {V100}: \
Node Launch Exception (UnfulfillableCapacity): the first refusal of two
2026-01-01 10:00:04,002\tINFO node_provider.py:491 -- Failed to launch 1 nodes of type {T4}: \
An error occurred (VcpuLimitExceeded) when calling the RunInstances operation: You have requested more vCPU capacity \
than your current vCPU limit of 0 allows for the instance bucket that the specified instance type belongs to.
2026-01-01 10:00:04,003\tWARNING instance_manager.py:288 -- Instance ALLOCATION_FAILED
2026-01-01 10:00:09,951\tINFO node_provider.py:491 -- Failed to launch 2 nodes of type {V100}: \
Node Launch Exception (InsufficientInstanceCapacity): {NO_CAPACITY}
2026-01-01 10:00:12,004\tINFO node_provider.py:486 -- Launched 1 nodes of type azure-16gb-t4-1g-eastus.
"""


def test_machines_on_their_way_are_told_with_their_number_and_since_when() -> None:
    facts = LaunchFacts({T4: (2, TEN_UNIX_S)}, {V100: 1}, {})
    assert describe(facts, {}, refused_since_unix_s=0.0) == [
        f"2 x {T4}: launching since 10:00:00 UTC",
        f"1 x {V100}: there, and being set up",
    ]


def test_a_refusal_is_told_with_its_reason_and_one_without_says_where_that_is() -> None:
    facts = LaunchFacts({}, {}, {T4: TEN_UNIX_S, V100: TEN_UNIX_S})
    reasons = {V100: f"InsufficientInstanceCapacity: {NO_CAPACITY}"}
    assert describe(facts, reasons, refused_since_unix_s=TEN_UNIX_S) == [
        f"{T4}: the provider refused it: its log on the head says why: periflow-ray cluster logs NAME",
        f"{V100}: the provider refused it: InsufficientInstanceCapacity: {NO_CAPACITY}",
    ]


def test_an_old_refusal_is_no_reason_of_a_wait_any_more() -> None:
    facts = LaunchFacts({}, {}, {T4: TEN_UNIX_S, V100: TEN_UNIX_S + 60})
    lines = describe(facts, {}, refused_since_unix_s=TEN_UNIX_S + 1)
    assert [line.split(":")[0] for line in lines] == [V100]


def test_nothing_is_said_where_nothing_is_waited_for() -> None:
    assert describe(LaunchFacts({}, {}, {}), {T4: "history"}, refused_since_unix_s=0.0) == []


def test_where_no_autoscaler_answers_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(gcs_address: str, timeout_s: int) -> LaunchFacts:
        raise OSError("nobody is there")

    monkeypatch.setattr(launches, "read_launches", fail)
    assert describe_launches("127.0.0.1:1") == []


def test_the_log_of_the_autoscaler_says_why_each_type_was_refused_last(tmp_path: Path) -> None:
    (tmp_path / "monitor.log").write_text(MONITOR_LOG)
    assert read_refusals(tmp_path / "monitor.log") == {
        V100: f"InsufficientInstanceCapacity: {NO_CAPACITY}",
        T4: "VcpuLimitExceeded: You have requested more vCPU capacity than your current vCPU limit of 0 allows for the "
        "instance bucket that the specified instance type belongs to.",
    }


def test_of_a_long_log_only_its_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "_READ_BYTES", 1000)
    filling = "2026-01-01 10:00:02,340\tINFO scheduler.py:1147 -- nothing of any importance\n" * 100
    old = f"-- Failed to launch 1 nodes of type {T4}: Node Launch Exception (Unsupported): long ago\n"
    new = f"-- Failed to launch 1 nodes of type {V100}: Node Launch Exception (Unsupported): now\n"
    # Cut anywhere, even within a letter.
    (tmp_path / "monitor.log").write_bytes((old + filling + "é" * 300 + "\n" + new).encode())
    assert read_refusals(tmp_path / "monitor.log") == {V100: "Unsupported: now"}


def test_on_a_machine_without_an_autoscaler_there_are_no_refusals(tmp_path: Path) -> None:
    assert read_refusals(tmp_path / "monitor.log") == {}


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (
            f"Node Launch Exception (InsufficientInstanceCapacity): {NO_CAPACITY}",
            f"InsufficientInstanceCapacity: {NO_CAPACITY}",
        ),
        (
            "An error occurred (InsufficientInstanceCapacity) when calling the RunInstances operation (reached max "
            "retries: 0): Insufficient capacity.",
            "InsufficientInstanceCapacity: Insufficient capacity.",
        ),
        (
            "An error occurred (InvalidSubnetID.NotFound) when calling the RunInstances operation: The subnet ID "
            "'subnet-1' does not exist",
            "InvalidSubnetID.NotFound: The subnet ID 'subnet-1' does not exist",
        ),
        (
            "(SkuNotAvailable) The requested VM size is not available in location 'eastus'.",
            "SkuNotAvailable: (SkuNotAvailable) The requested VM size is not available in location 'eastus'.",
        ),
        ("the network is down", "the network is down"),
    ],
)
def test_a_refusal_is_its_code_and_its_sentence(text: str, short: str) -> None:
    assert shorten_refusal(text) == short


def test_a_refusal_of_many_words_is_cut() -> None:
    assert len(shorten_refusal(f"An error occurred (Unsupported) when calling X: {'word ' * 500}")) == 300
    assert len(shorten_refusal("word " * 500)) == 300
