"""From a notice to a drain, a save and an acknowledgement: the watcher with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from email.utils import formatdate

import pytest
from support.metadata_servers import FakeAws, FakeAzure, serve_metadata

from periflow_ray.errors import ClusterError
from periflow_ray.runtime.notices.clouds import CLOUDS, make_source
from periflow_ray.runtime.notices.departure import Watcher

START_UNIX_S = 1789719600.0
NODE_ID = "ab" * 28


class Machine:
    """Ray as the watcher sees it; raises ``failure`` as long as it is set."""

    def __init__(self) -> None:
        self.failure = ""
        self.is_work_saved = False
        self.drains: list[tuple[str, float]] = []

        self.released: list[str] = []

    def drain(self, reason: str, deadline_unix_s: float) -> list[str]:
        if self.failure:
            raise ClusterError(self.failure)
        self.drains.append((reason, deadline_unix_s))
        return [NODE_ID]

    def is_needed(self, node_ids: Sequence[str]) -> bool:
        if self.failure:
            raise ClusterError(self.failure)
        return not self.is_work_saved

    def release(self, node_ids: Sequence[str], reason: str) -> None:
        self.released += node_ids


class Bench:
    """A watcher on one machine of one cloud."""

    def __init__(self, endpoint: str, clouds: Sequence[str]) -> None:
        self.now_s = START_UNIX_S
        self.machine = Machine()
        self.lines: list[str] = []
        self.watcher = Watcher(
            [make_source(cloud, {"PERIFLOW_METADATA_ENDPOINT": endpoint}) for cloud in clouds],
            self.machine,
            self.lines.append,
            unix_s=lambda: self.now_s,
            monotonic_s=lambda: self.now_s,
        )

    def run(self, duration_s: float) -> list[float]:
        """Let time pass; returns the pauses that the watcher made."""
        pauses_s, end_s = [], self.now_s + duration_s
        while self.now_s <= end_s:
            pauses_s.append(self.watcher.tick())
            self.now_s += pauses_s[-1]
        return pauses_s

    def take_lines(self) -> list[str]:
        lines, self.lines[:] = list(self.lines), []
        return lines


@pytest.fixture
def azure() -> Iterator[FakeAzure]:
    with serve_metadata(FakeAzure()) as service:
        yield service


@pytest.fixture
def bench(azure: FakeAzure) -> Bench:
    return Bench(azure.endpoint, ["azure"])


def announce_preemption(azure: FakeAzure, bench: Bench, notice_s: int = 30) -> tuple[str, float]:
    """Returns the reason and the deadline of the drain that has to follow."""
    deadline_unix_s = int(bench.now_s) + notice_s
    not_before = formatdate(deadline_unix_s, usegmt=True)
    azure.announce("Preempt", "event-1", not_before=not_before)
    return f"Azure takes this spot VM back not before {not_before} (event: Preempt)", deadline_unix_s


def test_from_notice_to_acknowledgement(azure: FakeAzure, bench: Bench):
    bench.run(5)
    assert bench.take_lines() == ["watching Azure's notices"]
    reason, deadline_unix_s = announce_preemption(azure, bench)
    bench.run(5)
    assert bench.machine.drains == [(reason, deadline_unix_s)]
    assert azure.started == []
    assert bench.take_lines() == [
        f"{reason}; 30 s left, draining this machine in Ray",
        f"drained Ray node {NODE_ID}",
    ]
    bench.machine.is_work_saved = True
    bench.run(5)
    assert azure.started == ["event-1"]
    assert bench.take_lines() == [
        "the work on this machine is saved or has ended",
        "told Azure that it may take this machine now",
    ]


def test_ray_expects_the_loss_of_a_machine_before_its_cloud_may_take_it(azure: FakeAzure, bench: Bench):
    announce_preemption(azure, bench)
    bench.run(5)
    assert bench.machine.released == []
    bench.machine.is_work_saved = True
    azure.failure = "status"
    bench.run(2)
    assert bench.machine.released[:1] == [NODE_ID]
    assert azure.started == []


def test_a_machine_stays_some_seconds_even_if_one_job_has_saved_at_once(azure: FakeAzure, bench: Bench):
    bench.machine.is_work_saved = True
    announce_preemption(azure, bench)
    bench.run(2)
    assert azure.started == []


def test_a_notice_without_a_deadline_is_drained_with_the_present_as_deadline(azure: FakeAzure, bench: Bench):
    azure.announce("Preempt", "event-1")
    bench.run(1)
    assert bench.machine.drains == [
        ("Azure takes this spot VM back at any moment (event: Preempt)", START_UNIX_S),
    ]


def test_a_warning_drains_nothing(azure: FakeAzure, bench: Bench):
    azure.announce("Freeze", "event-1")
    bench.run(30)
    assert bench.machine.drains == []
    assert bench.take_lines() == [
        "watching Azure's notices",
        "warning, nothing is drained: Azure pauses this VM at any moment (event: Freeze)",
    ]


def test_ray_may_come_later_than_the_notice(azure: FakeAzure, bench: Bench):
    bench.machine.failure = "Ray's GCS does not answer"
    drain = announce_preemption(azure, bench, notice_s=120)
    bench.run(100)
    bench.machine.failure = ""
    bench.run(2)
    assert bench.machine.drains == [drain]
    assert bench.take_lines()[2:] == [
        "trying again until the deadline: Ray's GCS does not answer",
        f"drained Ray node {NODE_ID}",
    ]


def test_after_the_deadline_ray_is_left_alone(azure: FakeAzure, bench: Bench):
    bench.machine.failure = "Ray's GCS does not answer"
    announce_preemption(azure, bench)
    bench.run(40)
    bench.machine.failure = ""
    bench.run(10)
    assert bench.machine.drains == []
    assert bench.take_lines()[-1] == "the deadline is over and this machine still there; waiting for the next notice"


def test_an_acknowledgement_is_repeated_until_it_arrives(azure: FakeAzure, bench: Bench):
    announce_preemption(azure, bench)
    bench.run(5)
    bench.machine.is_work_saved = True
    azure.failure = "status"
    bench.run(5)
    azure.failure = ""
    bench.run(5)
    assert azure.started == ["event-1"]


def test_a_failing_service_is_asked_less_and_less_often_and_logged_once(azure: FakeAzure, bench: Bench):
    bench.run(1)
    bench.take_lines()
    azure.failure = "status"
    assert bench.run(40)[:5] == [2, 4, 8, 8, 8]
    azure.failure = ""
    bench.run(10)
    num_failures = bench.watcher.num_metadata_errors
    path = "/metadata/scheduledevents?api-version=2020-07-01"
    assert bench.take_lines() == [
        f"the metadata service fails, trying again: {azure.endpoint}{path}: HTTP status 500",
        f"the metadata service answers again, after {num_failures} failed attempts",
    ]
    announce_preemption(azure, bench)
    bench.run(2)
    assert len(bench.machine.drains) == 1


def test_a_machine_may_boot_before_its_metadata_service_answers():
    with serve_metadata(FakeAws(failure="status", failure_status=503)) as aws:
        bench = Bench(aws.endpoint, CLOUDS)
        assert bench.run(120) == [2, 4, 8, 16, 32, 60]
        aws.failure = ""
        bench.run(60)
        assert bench.take_lines() == [
            "the metadata service fails, trying again: "
            "no metadata service answers as one of AWS, Azure, Google Cloud does",
            "watching AWS's notices",
            "the metadata service answers again, after 6 failed attempts",
        ]
