"""Watches over a cluster from its head: keeps its account, and ends it when nobody uses it or it has cost enough.

    python -m periflow_ray.runtime.head.warden --about ~/periflow-ray/about.json

It needs nobody's laptop: what it decides by is in the storage root, and it ends the machines through the provider's
API, its own among them. What costs nothing (roles, keys, security groups) stays until ``cluster down``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from periflow_ray.cluster.providers import open_provider
from periflow_ray.cluster.providers.prices import machine_usd_per_hour
from periflow_ray.cluster.providers.provider import RUNNING_STATES, Machine, Provider
from periflow_ray.cluster.records import About, ClusterAccount, ClusterRecord, MachineUse, read_account, read_cluster
from periflow_ray.cluster.records import write_account as write_account_document
from periflow_ray.errors import ClusterError, NotFoundError, PeriflowRayError, StorageError
from periflow_ray.jobs import Job, list_jobs
from periflow_ray.jobs.requests import StopRequest, post_request
from periflow_ray.jobs.stop_times import END_TIMEOUT_S, SAVE_TIMEOUT_S
from periflow_ray.loops import Faults
from periflow_ray.ray_jobs import RayJobs, connect
from periflow_ray.runtime.launches import describe_launches
from periflow_ray.runtime.notices.watcher import keep_running
from periflow_ray.store.documents import parse_document
from periflow_ray.store.patience import Patience
from periflow_ray.store.root import StorageRoot

INTERVAL_S = 10.0
# A Ray that has not answered for so long is no sign of jobs any more; then their heartbeats are.
RAY_TIMEOUT_S = 600.0
_DASHBOARD = "http://127.0.0.1:8265"
_GCS = "127.0.0.1:6379"
_POLL_S = 1.0


def count_costs(account: ClusterAccount, machines: Sequence[Machine], now_unix_s: float) -> ClusterAccount:
    """The account with what runs now; a machine that is gone keeps what it had cost when it was last seen."""
    uses = dict(account.machines)
    for machine in machines:
        if machine.state in RUNNING_STATES:
            uses[machine.id] = MachineUse(
                machine.node_type, machine.launched_unix_s, now_unix_s, machine_usd_per_hour(machine)
            )
    return replace(account, seen_unix_s=now_unix_s, machines=uses)


def find_reason_to_end(record: ClusterRecord, cost_usd: float, idle_s: float) -> str | None:
    """Why a cluster is to end, if it is.

    Args:
        idle_s: for how long no job has run.
    """
    if record.max_cost_usd is not None and cost_usd >= record.max_cost_usd:
        return f"it has cost ${cost_usd:.2f}, and --max-cost is ${record.max_cost_usd:.2f}"
    if record.autostop_s is not None and idle_s >= record.autostop_s:
        return f"no job has run for {idle_s / 60:.0f} minutes (--autostop)"
    return None


class Warden:
    """Looks once an interval; a look that fails is told, and the next one tries again.

    While the storage root is away it goes by what it knew last: the cluster costs its price meanwhile.
    """

    def __init__(self, root: StorageRoot, name: str, provider: Provider, ray_jobs: RayJobs) -> None:
        self._root = root
        self._name = name
        self._provider = provider
        self._ray_jobs = ray_jobs
        self._busy_s = self._ray_answered_s = time.monotonic()
        self._heartbeats: dict[int, float | None] = {}
        self._record: ClusterRecord | None = None
        self._account: ClusterAccount | None = None
        self._storage_faults = Faults("the warden's use of the storage root", _say)
        self._ray_faults = Faults("the warden's question for running jobs", _say)

    def look(self) -> bool:
        """Bring the account up to date, and end the cluster if that is due; returns whether it was."""
        now_unix_s = time.time()
        record, account = self._read(now_unix_s)
        account = count_costs(account, self._provider.list_machines(self._name), now_unix_s)
        if record.status != "running" or self._may_have_jobs():
            self._busy_s = time.monotonic()
        reason = find_reason_to_end(record, account.cost_usd, time.monotonic() - self._busy_s)
        waits = describe_launches(_GCS)
        self._account = replace(account, waits=waits, ended_because=reason)
        self._use_storage(self._write_account)
        if reason is None:
            return False
        _say(f"ends cluster '{self._name}': {reason}")
        self._use_storage(self._stop_jobs)
        self._provider.end_machines(self._name)
        return True

    def _read(self, now_unix_s: float) -> tuple[ClusterRecord, ClusterAccount]:
        try:
            self._record = read_cluster(self._root, self._name)
            if self._account is None:
                self._account = read_account(self._root, self._name)
        except (OSError, StorageError, NotFoundError) as err:
            # Of a folder that is not mounted the record is just not there.
            if self._record is None:
                raise
            self._storage_faults.take(err)
        return self._record, self._account or ClusterAccount(now_unix_s)

    def _write_account(self) -> None:
        assert self._account is not None
        write_account_document(self._root, self._name, self._account)

    def _use_storage(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, StorageError) as err:
            self._storage_faults.take(err)

    def _may_have_jobs(self) -> bool:
        """Whether a job runs, by Ray's word; where Ray is dead, by what the jobs write of themselves."""
        try:
            has_jobs = self._ray_jobs.has_running_jobs()
        except ClusterError as err:
            self._ray_faults.take(err)
            return time.monotonic() - self._ray_answered_s < RAY_TIMEOUT_S or self._has_heartbeat()
        self._ray_answered_s = time.monotonic()
        return has_jobs

    def _has_heartbeat(self) -> bool:
        """Whether a job has given a sign of life since the last look; while the storage is away, one may have."""
        try:
            heartbeats = {job.record.job_id: job.state.heartbeat_unix_s for job in self._list_own_jobs()}
        except (OSError, StorageError) as err:
            self._storage_faults.take(err)
            return True
        before, self._heartbeats = self._heartbeats, heartbeats
        return any(before.get(job_id) != heartbeat for job_id, heartbeat in heartbeats.items())

    def _list_own_jobs(self) -> list[Job]:
        """The cluster's jobs that have not ended."""
        reference = f"cluster:{self._name}"
        jobs = list_jobs(self._root, on_unreadable=lambda err: None)
        return [job for job in jobs if job.record.ray_address == reference and not job.state.has_ended]

    def _stop_jobs(self) -> None:
        """Let the jobs that run here save, and wait for it as long as a job may take to stop."""
        waiting = {job.record.job_id for job in self._list_own_jobs()}
        for job_id in waiting:
            post_request(self._root, job_id, StopRequest(SAVE_TIMEOUT_S))
        deadline = time.monotonic() + SAVE_TIMEOUT_S + END_TIMEOUT_S
        while waiting and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            waiting &= {job.record.job_id for job in self._list_own_jobs()}


def watch(look: Callable[[], bool], interval_s: float = INTERVAL_S) -> None:
    """Look once an interval until the cluster is to end, and then until it has."""
    faults = Faults("the warden's look", _say)
    while True:
        try:
            look()
        except Exception as err:
            faults.take(err)
        time.sleep(interval_s)


def main() -> None:
    """Watch until the machine ends; a process that ends before it is followed by another one."""
    parser = argparse.ArgumentParser(prog="python -m periflow_ray.runtime.head.warden", description=__doc__)
    parser.add_argument("--about", type=Path, required=True)
    path: Path = parser.parse_args().about
    keep_running(lambda: _watch(path))


def _watch(path: Path) -> None:
    try:
        about = parse_document(About, path.read_bytes(), str(path))
        patience = Patience(_say)
        root = patience.insist(lambda: StorageRoot(about.storage))
        record = patience.insist(lambda: read_cluster(root, about.name))
        provider = open_provider(record.cloud, record.region)
    except PeriflowRayError as err:
        _say(str(err))
        # What follows tries again.
        time.sleep(INTERVAL_S)
        return
    watch(Warden(root, about.name, provider, connect(_DASHBOARD)).look)


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC warden: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
