"""The warden on a cluster's head: what the cluster costs, when it ends, and that its jobs may save before.

Long because the account, the limits, the look and the loop are the parts of one short program.
"""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.job_server import JobServer, serve_jobs
from support.provider_stand_in import ProviderStandIn, make_machine
from support.sample_jobs import build_record

from periflow_ray.cluster.providers.provider import ProviderError
from periflow_ray.cluster.records import (
    ClusterAccount,
    ClusterRecord,
    MachineUse,
    read_account,
    write_account,
    write_cluster,
)
from periflow_ray.errors import NotFoundError
from periflow_ray.jobs import JobState, write_record, write_state
from periflow_ray.jobs.requests import StopRequest, take_requests
from periflow_ray.jobs.stop_times import SAVE_TIMEOUT_S
from periflow_ray.ray_jobs import connect
from periflow_ray.runtime.head import warden as warden_module
from periflow_ray.runtime.head.warden import Warden, count_costs, find_reason_to_end, watch
from periflow_ray.store.root import StorageRoot

WaitUntil = Callable[[Callable[[], bool]], None]
T4 = "aws-16gb-t4-1g-us-east-1"
IDLE_S = 0.05
RECORD = ClusterRecord(
    name="mine",
    cloud="aws",
    region="us-east-1",
    vm_names=[T4],
    max_num_nodes=2,
    idle_timeout_minutes=10,
    created_by="kim",
    created_on="laptop",
    created_unix_s=0.0,
    status="running",
    head_address="203.0.113.4",
)


@pytest.fixture(autouse=True)
def _no_autoscaler(monkeypatch: pytest.MonkeyPatch) -> None:
    # Asking a Ray that is not there takes its whole timeout.
    monkeypatch.setattr(warden_module, "describe_launches", lambda *given, **times: ["2 x t4: launching"])
    monkeypatch.setattr(warden_module, "_POLL_S", 0.01)


@pytest.fixture
def root(tmp_path: Path) -> StorageRoot:
    root = StorageRoot(str(tmp_path / "storage"))
    write_cluster(root, RECORD)
    return root


@pytest.fixture
def account() -> ProviderStandIn:
    """A head at $0.096 per hour that has run for ten hours."""
    account = ProviderStandIn()
    account.machines["mine"] = [make_machine(launched_unix_s=time.time() - 36_000)]
    return account


@pytest.fixture
def ray_jobs() -> Iterator[JobServer]:
    with serve_jobs() as server:
        yield server


@pytest.fixture
def warden(root: StorageRoot, account: ProviderStandIn, ray_jobs: JobServer) -> Warden:
    return Warden(root, "mine", account, connect(ray_jobs.address))


def read_own_account(root: StorageRoot) -> ClusterAccount:
    account = read_account(root, "mine")
    assert account is not None
    return account


def look_for(warden: Warden, seconds: float = 0.1) -> set[bool]:
    """What all looks say in this time, which is longer than IDLE_S."""
    end_s, found = time.monotonic() + seconds, set()
    while time.monotonic() < end_s:
        found.add(warden.look())
    return found


# The account.


def test_a_machine_costs_its_price_for_as_long_as_it_is_seen() -> None:
    head = make_machine("i-1", launched_unix_s=0.0)
    worker = make_machine("i-2", T4, launched_unix_s=3600.0)
    account = count_costs(ClusterAccount(0.0), [head], 1800.0)
    assert account.cost_usd == pytest.approx(0.5 * 0.096)
    account = count_costs(account, [head, worker], 7200.0)
    assert account.cost_usd == pytest.approx(2 * 0.096 + 1 * 0.526)
    assert account.machines["i-2"] == MachineUse(T4, 3600.0, 7200.0, 0.526)


@pytest.mark.parametrize("state", [None, "shutting-down", "stopping", "stopped", "deallocated"])
def test_a_machine_that_has_ended_keeps_what_it_had_cost_and_costs_no_more(state: str | None) -> None:
    worker = make_machine("i-2", T4, launched_unix_s=0.0)
    account = count_costs(ClusterAccount(0.0), [worker], 3600.0)
    ended = [] if state is None else [dataclasses.replace(worker, state=state)]
    for now_unix_s in (7200.0, 36_000.0):
        account = count_costs(account, ended, now_unix_s)
    assert (account.cost_usd, account.seen_unix_s) == (pytest.approx(0.526), 36_000.0)


def test_machines_that_follow_one_another_add_up() -> None:
    account = ClusterAccount(0.0)
    for number in range(4):
        worker = make_machine(f"i-{number}", T4, launched_unix_s=number * 3600.0)
        account = count_costs(account, [worker], (number + 1) * 3600.0)
    assert account.cost_usd == pytest.approx(4 * 0.526)


def test_a_machine_that_starts_costs_its_price_already() -> None:
    starting = make_machine("i-2", T4, state="pending", setup="", launched_unix_s=0.0)
    assert count_costs(ClusterAccount(0.0), [starting], 3600.0).cost_usd == pytest.approx(0.526)


def test_of_a_spot_machine_the_highest_price_that_is_known_counts() -> None:
    spot = make_machine("i-2", f"{T4}-spot", is_spot=True, launched_unix_s=0.0)
    account = count_costs(ClusterAccount(0.0), [spot], 3600.0)
    assert 0.0 < account.cost_usd < 0.526


# The limits.


@pytest.mark.parametrize(
    ("limits", "cost_usd", "idle_s", "reason"),
    [
        ({}, 1e6, 1e9, None),
        ({"autostop_s": 1800.0}, 1e6, 1799.9, None),
        ({"autostop_s": 1800.0}, 0.0, 1800.0, "no job has run for 30 minutes (--autostop)"),
        ({"max_cost_usd": 25.0}, 24.99, 1e9, None),
        ({"max_cost_usd": 25.0}, 25.0, 0.0, "it has cost $25.00, and --max-cost is $25.00"),
        ({"max_cost_usd": 25.0, "autostop_s": 60.0}, 26.5, 60.0, "it has cost $26.50, and --max-cost is $25.00"),
    ],
)
def test_a_cluster_ends_at_its_limits_and_not_before(
    limits: dict[str, float], cost_usd: float, idle_s: float, reason: str | None
) -> None:
    record = dataclasses.replace(RECORD, **limits)  # type: ignore[arg-type]
    assert find_reason_to_end(record, cost_usd, idle_s) == reason


# A look.


def test_a_look_writes_the_account_and_what_the_cluster_waits_for(
    root: StorageRoot, account: ProviderStandIn, warden: Warden
) -> None:
    assert warden.look() is False
    written = read_own_account(root)
    assert written.cost_usd == pytest.approx(0.96, abs=0.01)
    assert (written.waits, written.ended_because) == (["2 x t4: launching"], None)
    assert account.ended == []


def test_a_look_goes_on_with_the_account_that_is_there(
    root: StorageRoot, account: ProviderStandIn, warden: Warden
) -> None:
    # Of a warden before this one, which was killed; the worker is gone.
    write_account(root, "mine", ClusterAccount(0.0, {"i-0": MachineUse(T4, 0.0, 3600.0, 0.526)}))
    warden.look()
    assert read_own_account(root).cost_usd == pytest.approx(0.96 + 0.526, abs=0.01)


def test_a_cluster_on_which_nothing_runs_is_ended(
    root: StorageRoot, account: ProviderStandIn, warden: Warden, wait_until: WaitUntil
) -> None:
    write_cluster(root, dataclasses.replace(RECORD, autostop_s=IDLE_S))
    wait_until(warden.look)
    assert account.ended == ["mine"]
    assert read_own_account(root).ended_because == "no job has run for 0 minutes (--autostop)"


def test_a_cluster_on_which_a_job_runs_is_not_idle(
    root: StorageRoot, account: ProviderStandIn, warden: Warden, ray_jobs: JobServer, wait_until: WaitUntil
) -> None:
    write_cluster(root, dataclasses.replace(RECORD, autostop_s=IDLE_S))
    ray_jobs.jobs["periflow-1"] = {"status": "RUNNING"}
    assert look_for(warden) == {False}
    ray_jobs.jobs["periflow-1"] = {"status": "SUCCEEDED"}
    # The time counts from the job's end.
    assert warden.look() is False
    wait_until(warden.look)
    assert account.ended == ["mine"]


def test_a_cluster_that_is_still_being_made_is_not_idle(
    root: StorageRoot, account: ProviderStandIn, warden: Warden
) -> None:
    write_cluster(root, dataclasses.replace(RECORD, status="creating", autostop_s=IDLE_S))
    assert look_for(warden) == {False}
    assert account.ended == []


def write_jobs(root: StorageRoot) -> None:
    """Jobs 1 and 2 run on this cluster; 3 has ended, 4 runs on another one and 5 on its user's machine."""
    addresses = {1: "cluster:mine", 2: "cluster:mine", 3: "cluster:mine", 4: "cluster:theirs", 5: None}
    for job_id, address in addresses.items():
        write_record(root, dataclasses.replace(build_record(job_id), ray_address=address))
        write_state(root, job_id, JobState("failed" if job_id == 3 else "running", heartbeat_unix_s=time.time()))


def test_at_its_price_limit_jobs_may_save_before_the_machines_end(
    root: StorageRoot, account: ProviderStandIn, warden: Warden, ray_jobs: JobServer, wait_until: WaitUntil
) -> None:
    write_jobs(root)
    write_cluster(root, dataclasses.replace(RECORD, max_cost_usd=0.5))
    ray_jobs.jobs["periflow-1"] = {"status": "RUNNING"}
    look = threading.Thread(target=warden.look)
    look.start()
    asked: dict[int, list[object]] = {}
    try:
        for job_id in (1, 2):
            wait_until(lambda job_id=job_id: bool(root.list_names(f"jobs/{job_id}/requests")))  # type: ignore[misc]
            asked[job_id] = [*take_requests(root, job_id)]
        assert read_own_account(root).ended_because == "it has cost $0.96, and --max-cost is $0.50"
        write_state(root, 1, JobState("stopped"))
        # The other one still saves.
        assert account.ended == []
    finally:
        write_state(root, 1, JobState("stopped"))
        write_state(root, 2, JobState("stopped"))
        look.join(timeout=30)
    assert asked == {1: [StopRequest(SAVE_TIMEOUT_S)], 2: [StopRequest(SAVE_TIMEOUT_S)]}
    assert account.ended == ["mine"]
    assert [take_requests(root, job_id) for job_id in (3, 4, 5)] == [[], [], []]


def test_a_price_limit_holds_while_the_storage_is_away(
    root: StorageRoot, account: ProviderStandIn, warden: Warden, tmp_path: Path
) -> None:
    write_cluster(root, dataclasses.replace(RECORD, max_cost_usd=1.0))
    assert not warden.look()
    shutil.rmtree(tmp_path / "storage")
    (tmp_path / "storage").write_text("not a folder")
    assert not warden.look()
    account.machines["mine"] = [make_machine(launched_unix_s=time.time() - 40_000)]
    assert warden.look()
    assert account.ended == ["mine"]


def test_a_job_that_does_not_stop_in_time_keeps_no_cluster_up(
    root: StorageRoot, account: ProviderStandIn, warden: Warden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warden_module, "SAVE_TIMEOUT_S", 0.02)
    monkeypatch.setattr(warden_module, "END_TIMEOUT_S", 0.02)
    write_jobs(root)
    write_cluster(root, dataclasses.replace(RECORD, max_cost_usd=0.5))
    assert warden.look() is True
    assert account.ended == ["mine"]


def test_at_its_price_limit_a_cluster_ends_even_if_its_ray_does_not_answer(
    root: StorageRoot, account: ProviderStandIn
) -> None:
    write_cluster(root, dataclasses.replace(RECORD, max_cost_usd=0.5, autostop_s=0.0))
    with serve_jobs() as server:
        address = server.address
    warden = Warden(root, "mine", account, connect(address))
    assert warden.look() is True
    assert read_own_account(root).ended_because == "it has cost $0.96, and --max-cost is $0.50"
    assert account.ended == ["mine"]


def test_a_ray_that_does_not_answer_is_not_taken_for_an_idle_one(root: StorageRoot, account: ProviderStandIn) -> None:
    write_cluster(root, dataclasses.replace(RECORD, autostop_s=IDLE_S))
    with serve_jobs() as server:
        address = server.address
    warden = Warden(root, "mine", account, connect(address))
    assert look_for(warden) == {False}
    assert (account.ended, read_own_account(root).cost_usd > 0.9) == ([], True)


def test_a_ray_that_is_dead_keeps_no_cluster_up(
    root: StorageRoot, account: ProviderStandIn, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    monkeypatch.setattr(warden_module, "RAY_TIMEOUT_S", 0.02)
    # Its drivers died with it, and could not say so.
    write_jobs(root)
    write_cluster(root, dataclasses.replace(RECORD, autostop_s=IDLE_S))
    monkeypatch.setattr(warden_module, "SAVE_TIMEOUT_S", 0.02)
    monkeypatch.setattr(warden_module, "END_TIMEOUT_S", 0.02)
    with serve_jobs() as server:
        address = server.address
    wait_until(Warden(root, "mine", account, connect(address)).look)
    assert account.ended == ["mine"]


def test_a_job_that_gives_signs_of_life_is_running_whether_or_not_ray_answers(
    root: StorageRoot, account: ProviderStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warden_module, "RAY_TIMEOUT_S", 0.0)
    write_jobs(root)
    write_cluster(root, dataclasses.replace(RECORD, autostop_s=0.5))
    with serve_jobs() as server:
        address = server.address
    warden = Warden(root, "mine", account, connect(address))
    end_s = time.monotonic() + 1.0
    while time.monotonic() < end_s:
        write_state(root, 2, JobState("running", heartbeat_unix_s=time.time()))
        assert warden.look() is False
    assert account.ended == []


def test_an_end_that_the_provider_refuses_is_tried_again_at_the_next_look(
    root: StorageRoot, ray_jobs: JobServer, account: ProviderStandIn
) -> None:
    class Refusing(ProviderStandIn):
        def end_machines(self, name: str) -> None:
            if not self.refusals:
                super().end_machines(name)
            else:
                raise ProviderError(self.refusals.pop("i-1"))

    refusing = Refusing()
    refusing.machines = account.machines
    refusing.refusals["i-1"] = "AWS refused ending the instances: RequestLimitExceeded"
    write_cluster(root, dataclasses.replace(RECORD, max_cost_usd=0.5))
    warden = Warden(root, "mine", refusing, connect(ray_jobs.address))
    with pytest.raises(ProviderError):
        warden.look()
    assert warden.look() is True
    assert refusing.ended == ["mine"]


# The loop.


def test_the_watch_goes_on_whatever_a_look_raises(capfd: pytest.CaptureFixture[str]) -> None:
    class EndOfTest(BaseException): ...

    looks: list[BaseException | bool] = [
        False,
        ProviderError("AWS cannot be reached"),
        NotFoundError("there is no cluster 'mine'"),
        RuntimeError("a fault of ours"),
        # Ended; the machine it runs on takes a while to go.
        True,
        False,
        EndOfTest(),
    ]
    num_looks = 0

    def look() -> bool:
        nonlocal num_looks
        outcome = looks[num_looks]
        num_looks += 1
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    with pytest.raises(EndOfTest):
        watch(look, interval_s=0.001)
    assert num_looks == len(looks)
    said = capfd.readouterr().err
    assert "the warden's look failed unexpectedly (ProviderError: AWS cannot be reached) and goes on." in said
    assert "RuntimeError: a fault of ours" in said
