"""Members of a large job as the monitor sees them, in a few processes: ``monitor_load.py ours|empty``.

An actor of Ray takes the calls of 1,000 members of 8 ranks each, from load actors that make them as members do: one
call for orders waits all the time, and a report comes at the interval that the monitor tells. ``empty`` sends the same
to an actor that does nothing. Prints a JSON object: the actor's share of a core, and the seconds from an order until
the last member has it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from periflow_ray.jobs.requests import KillRankDrill
from periflow_ray.runtime.monitor.client import start_monitor
from periflow_ray.runtime.monitor.contract import AttemptStart, MemberFacts, Rehearse, Report
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.membership import MAX_REPORTS_PER_S
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.runtime.ray_train.train_run import ensure_ray, set_train_environment
from periflow_ray.store.root import StorageRoot

NUM_MEMBERS = 1000
NUM_RANKS = 8
NUM_LOADS = 4
WARM_UP_S = 26.0
STEADY_S = 30.0
NUM_ORDERS = 5


class EmptyMonitor:
    """Takes the calls, and knows nothing."""

    def __init__(self) -> None:
        self._num_orders = 0
        self._changed = asyncio.Condition()

    async def join(self, key: Any, facts: MemberFacts) -> AttemptStart:
        return AttemptStart(
            1, NUM_MEMBERS, report_interval_s=0.5 if facts.member == 0 else NUM_MEMBERS / MAX_REPORTS_PER_S
        )

    async def report(self, report: Report) -> None:
        return

    async def next_orders(self, attempt: int, num_seen: int) -> list[Rehearse]:
        async with self._changed:
            await self._changed.wait_for(lambda: self._num_orders > num_seen)
            return [Rehearse(KillRankDrill(-1))] * (self._num_orders - num_seen)

    async def drill(self, drill: KillRankDrill) -> None:
        async with self._changed:
            self._num_orders += 1
            self._changed.notify_all()


class Load:
    """Some of the members."""

    def __init__(self, monitor: Any, members: range) -> None:
        self._monitor = monitor
        self._members = members
        self._heard_s: dict[int, list[float]] = {member: [] for member in members}
        self._tasks: list[asyncio.Task[None]] = []

    async def join(self) -> None:
        self._tasks = [asyncio.create_task(self._take_part(member)) for member in self._members]

    async def heard_s(self, index: int) -> float | None:
        """When the last of them heard of an order, by the monotonic clock; None if one has not."""
        if any(len(heard) <= index for heard in self._heard_s.values()):
            return None
        return max(heard[index] for heard in self._heard_s.values())

    async def _take_part(self, member: int) -> None:
        facts = MemberFacts(member, NUM_MEMBERS, member, "10.0.0.1", 1, f"machine-{member}")
        start = await self._monitor.join.remote(("bench", 0), facts)
        following = asyncio.create_task(self._follow(member, start.attempt))
        # Members do not start at the same moment.
        await asyncio.sleep(start.report_interval_s * (member % 100) / 100)
        number = 0
        while not following.done():
            number += 1
            steps = {member * NUM_RANKS + rank: number for rank in range(NUM_RANKS)}
            await self._monitor.report.remote(Report(start.attempt, member, number, steps))
            await asyncio.sleep(start.report_interval_s)

    async def _follow(self, member: int, attempt: int) -> None:
        num_seen = 0
        while True:
            orders = await self._monitor.next_orders.remote(attempt, num_seen)
            num_seen += len(orders)
            self._heard_s[member] += [time.monotonic()] * len(orders)


def main() -> None:
    set_train_environment()
    ensure_ray()
    with tempfile.TemporaryDirectory(prefix="periflow-bench-") as directory:
        if sys.argv[1] == "ours":
            rules = JobRules(devices_per_member=NUM_RANKS, max_failures=0, retention=Retention())
            actor = start_monitor(StorageRoot(directory), 1, rules, NUM_MEMBERS)._actor
        else:
            actor = ray.remote(num_cpus=0, max_concurrency=10 * NUM_MEMBERS)(EmptyMonitor).remote()
        pid = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
        share = NUM_MEMBERS // NUM_LOADS
        loads = [
            ray.remote(num_cpus=0, max_concurrency=10)(Load).remote(actor, range(index * share, (index + 1) * share))
            for index in range(NUM_LOADS)
        ]
        ray.get([load.join.remote() for load in loads])
        time.sleep(WARM_UP_S)
        began_s, began_cpu_s = time.monotonic(), read_cpu_s(pid)
        time.sleep(STEADY_S)
        share_of_core = (read_cpu_s(pid) - began_cpu_s) / (time.monotonic() - began_s)
        order_s = [send_order(actor, loads, index) for index in range(NUM_ORDERS)]
        print(json.dumps({"cores": share_of_core, "order_s": max(order_s)}))
        ray.shutdown()


def send_order(actor: Any, loads: list[Any], index: int) -> float:
    began_s = time.monotonic()
    ray.get(actor.drill.remote(KillRankDrill(-1)))
    while True:
        heard_s = ray.get([load.heard_s.remote(index) for load in loads])
        if None not in heard_s:
            return max(heard_s) - began_s
        time.sleep(0.05)


def read_cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
