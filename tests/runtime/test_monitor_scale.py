"""What the monitor keeps, and whom it wakes, when there is much of everything."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter
from collections.abc import Callable
from types import FunctionType, ModuleType

import pytest
from simulated_nodes import ObservedMonitor, facts_of, report_of

from periflow_ray.jobs.requests import KillRankDrill
from periflow_ray.runtime.monitor import membership
from periflow_ray.runtime.monitor.changes import Changes
from periflow_ray.runtime.monitor.contract import Rehearse
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.spec import KeepBest
from periflow_ray.store.checkpoints import Content, LocalFile

NUM_COMMITS = 25
NUM_FILES = 512
# At most 10 MB for a thousand. A manifest of this size takes more than ten times as much.
MAX_BYTES_PER_COMMIT = (10 << 20) // 1000


def size_of(*roots: object) -> int:
    """Bytes of everything that these objects hold, but for code."""
    seen: set[int] = set()
    waiting, num_bytes = list(roots), 0
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, type | ModuleType | FunctionType):
            continue
        seen.add(id(found))
        num_bytes += sys.getsizeof(found)
        waiting += gc.get_referents(found)
    return num_bytes


@pytest.mark.parametrize(
    "retention",
    [Retention(), Retention(keep_last=2), Retention(keep_last=2, keep_best=KeepBest(metric="loss", mode="min"))],
)
def test_settled_checkpoints_leave_memory(run_monitor, retention):
    async def scenario(monitor: ObservedMonitor) -> None:
        await monitor.join(("group-1", 0), facts_of(0, 1))
        board = monitor._checkpoints
        sizes = []
        for step in range(2 * NUM_COMMITS):
            if step % NUM_COMMITS == NUM_COMMITS - 1:
                sizes.append(size_of(monitor))
            files = [LocalFile(f"shard-{number:05d}-of-{NUM_FILES}.pt", 1, f"{step}") for number in range(NUM_FILES)]
            # Without the files themselves: half a million would take minutes.
            board.announce(0, (step, 1))
            await board.begin(0, (step, 1), Content(files))
            assert await board.finish(0, (step, 1), None) is None
        assert board.num_commits == 2 * NUM_COMMITS
        # The newest one is kept as it is; that is the same each time.
        assert (sizes[1] - sizes[0]) / NUM_COMMITS <= MAX_BYTES_PER_COMMIT, sizes

    run_monitor(scenario, num_members=1, retention=retention)


def count_wakes(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often somebody who waited for news was woken, by the object that told them."""
    woken: Counter[int] = Counter()
    wait = Changes.wait

    async def count(self: Changes, timeout_s: float | None = None) -> None:
        await wait(self, timeout_s)
        woken[id(self)] += 1

    monkeypatch.setattr(Changes, "wait", count)
    return woken


def test_a_report_wakes_none_of_those_who_wait_for_orders(run_monitor, monkeypatch):
    woken = count_wakes(monkeypatch)
    num_members = 100

    async def scenario(monitor: ObservedMonitor) -> None:
        facts = [facts_of(member, num_members) for member in range(num_members)]
        await asyncio.gather(*(monitor.join(("group-1", 0), known) for known in facts))
        waiting = [asyncio.create_task(monitor.next_orders(1, 0)) for _ in facts]
        await asyncio.sleep(0)
        woken.clear()
        for step in range(1, 6):
            for member in range(num_members):
                await monitor.report(report_of(member, step, {member: step}))
                # Long enough for everybody who is woken.
                await asyncio.sleep(0)
        assert sum(woken.values()) == 0
        await monitor.drill(KillRankDrill(99))
        assert await asyncio.gather(*waiting) == [[Rehearse(KillRankDrill(99))]] * num_members
        assert sum(woken.values()) == num_members

    run_monitor(scenario, num_members=num_members)


def test_members_that_are_many_report_less_often(run_monitor, monkeypatch):
    monkeypatch.setattr(membership, "REPORT_INTERVAL_S", 0.5)
    monkeypatch.setattr(membership, "MAX_REPORTS_PER_S", 40.0)
    intervals: dict[int, list[float]] = {}

    def join(num_members: int) -> Callable[[ObservedMonitor], object]:
        async def scenario(monitor: ObservedMonitor) -> None:
            facts = [facts_of(member, num_members) for member in range(num_members)]
            starts = await asyncio.gather(*(monitor.join(("group-1", 0), known) for known in facts))
            intervals[num_members] = [start.report_interval_s for start in starts]

        return scenario

    for num_members in (2, 1000):
        run_monitor(join(num_members), num_members=num_members)
    assert intervals[2] == [0.5, 0.5]
    # Rank 0's step and metrics are what users look at.
    assert intervals[1000][0] == 0.5
    others = intervals[1000][1:]
    assert sum(1 / interval_s for interval_s in others) == pytest.approx(40.0, rel=0.01)
