"""Machines that their cloud takes back: metadata service, watcher, Ray's drain, a save at an agreed step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.hash_chain import HashChain, find_checkpoint, finish, wait_for_checkpoint, wait_for_notice
from support.machines import Cluster, Machine, NoticeWatcher
from support.metadata_servers import FakeAws, FakeMetadata, announce_loss, serve_metadata
from support.workbench import wait_until

from periflow_ray import jobs
from periflow_ray.jobs.attempts import AttemptRecord
from periflow_ray.store.root import StorageRoot

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

Submit = Callable[..., int]
Watch = Callable[[Machine, FakeMetadata], NoticeWatcher]


def report(root: StorageRoot, job_id: int, announced_unix_s: float, record_property: Any) -> None:
    """Put the measured times into the test's report."""
    first, second = finish(root, job_id)[:2]
    assert first.save is not None
    assert first.save.step is not None
    assert second.first_step_unix_s is not None
    committed_unix_s = find_checkpoint(root, job_id, first.save.step).created_unix_s
    record_property("drain_to_commit_s", first.save.save_time_s)
    record_property("notice_to_commit_s", committed_unix_s - announced_unix_s)
    record_property("notice_to_first_new_step_s", second.first_step_unix_s - announced_unix_s)


def assert_nothing_was_lost(first: AttemptRecord, second: AttemptRecord) -> None:
    assert (first.cause, second.cause) == ("preemption", None)
    assert first.save is not None
    # Saved where all ranks stopped: no step is made twice.
    assert first.last_step == first.save.step == first.resumable_step == second.resumed_step


@pytest.mark.long
def test_a_notice_to_one_of_two_machines_costs_no_step(
    cluster: Cluster, submit: Submit, watch: Watch, tmp_path: Path, record_property: Any
) -> None:
    cluster.provide_machines(3)
    chain = HashChain(num_steps=800)
    job_id = submit(chain)
    service = FakeAws()
    with serve_metadata(service):
        wait_for_checkpoint(cluster.root, job_id)
        machine = cluster.machine_of(job_id, 1)
        watch(machine, service)
        announced_unix_s = announce_loss(service, 60)
        first, second = finish(cluster.root, job_id)
        assert_nothing_was_lost(first, second)
        assert first.text.startswith("node 1 was taken away in ")
        chain.assert_exact(cluster.root, job_id, tmp_path)
    report(cluster.root, job_id, announced_unix_s, record_property)


@pytest.mark.long
def test_two_notices_at_once_to_both_machines_cost_no_step(
    cluster: Cluster, submit: Submit, watch: Watch, tmp_path: Path, record_property: Any
) -> None:
    cluster.provide_machines(4)
    chain = HashChain(num_steps=800)
    job_id = submit(chain)
    services = FakeAws(), FakeAws()
    with ExitStack() as served:
        for service in services:
            served.enter_context(serve_metadata(service))
        wait_for_checkpoint(cluster.root, job_id)
        for node, service in enumerate(services):
            watch(cluster.machine_of(job_id, node), service)
        announced_unix_s, _ = (announce_loss(service, 60) for service in services)
        first, second = finish(cluster.root, job_id)[:2]
        assert_nothing_was_lost(first, second)
    chain.assert_exact(cluster.root, job_id, tmp_path)
    report(cluster.root, job_id, announced_unix_s, record_property)


@pytest.mark.long
def test_a_notice_before_the_first_step_moves_the_job_at_once(
    cluster: Cluster, submit: Submit, watch: Watch, tmp_path: Path
) -> None:
    cluster.provide_machines(3)
    chain = HashChain(start_s=20)
    job_id = submit(chain)
    service = FakeAws()
    with serve_metadata(service):
        wait_until(lambda: jobs.read_state(cluster.root, job_id).status == "running", "the job starts")
        watch(cluster.machine_of(job_id, 1), service)
        announced_unix_s = announce_loss(service, 120)
        first, second = finish(cluster.root, job_id)
    assert (first.cause, first.last_step, first.save, second.cause) == ("preemption", 0, None, None)
    assert second.started_unix_s < announced_unix_s + 120
    chain.assert_exact(cluster.root, job_id, tmp_path)


@pytest.mark.long
def test_a_notice_that_is_too_short_for_a_step_costs_the_steps_after_the_last_checkpoint(
    cluster: Cluster, submit: Submit, watch: Watch, tmp_path: Path
) -> None:
    cluster.provide_machines(3)
    chain = HashChain(num_steps=12, step_time_s=4.0, save_every=2)
    job_id = submit(chain)
    service = FakeAws()
    with serve_metadata(service):
        wait_for_checkpoint(cluster.root, job_id)
        machine = cluster.machine_of(job_id, 1)
        watch(machine, service)
        deadline_unix_s = announce_loss(service, 5) + 5
        wait_for_notice(cluster.root, job_id, deadline_unix_s)
        machine.power_off()
        first, second = finish(cluster.root, job_id)
    assert (first.cause, second.cause) == ("preemption", None)
    assert second.resumed_step >= first.resumable_step >= chain.save_every
    chain.assert_exact(cluster.root, job_id, tmp_path)
