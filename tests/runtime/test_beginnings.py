"""A script that does not read the checkpoint which it was given back is noticed, and a word is said of it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from simulated_nodes import Node, ObservedMonitor, failure_of, join_all, save_all

from periflow_ray.jobs.events import read_events
from periflow_ray.runtime.member import open_watch
from periflow_ray.runtime.member.open_watch import OpenWatch
from periflow_ray.runtime.monitor.contract import Beginning, Report
from periflow_ray.store.root import StorageRoot


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "ckpt" / "deep").mkdir(parents=True)
    (tmp_path / "ckpt" / "deep" / "model.pt").write_text("weights")
    return tmp_path / "ckpt"


def test_a_file_that_any_process_opens_is_seen(directory):
    watch = OpenWatch(directory)
    assert watch.has_opened is False
    # To look for one is not to read it.
    assert list(directory.rglob("*.pt")) == [directory / "deep" / "model.pt"]
    assert watch.has_opened is False
    subprocess.run(["cat", str(directory / "deep" / "model.pt")], check=True, stdout=subprocess.DEVNULL)
    assert watch.has_opened is True
    watch.close()
    assert watch.has_opened is True


def test_what_cannot_be_watched_is_not_known(directory, monkeypatch):
    monkeypatch.setattr(open_watch, "_MAX_DIRECTORIES", 1)
    assert OpenWatch(directory).has_opened is None


async def resume_two(monitor: ObservedMonitor, root: StorageRoot, tmp_path: Path) -> list[Node]:
    """Two nodes of a job that resumes at step 10."""
    nodes = [Node(monitor, root, tmp_path, rank) for rank in (0, 1)]
    for node in nodes:
        (node.output_dir / "model.pt").write_text("ten steps")
    await join_all(nodes)
    assert await save_all(nodes, (10, 1)) == [None, None]
    for node in nodes:
        await node.leave(failure_of(node.node_rank))
    await join_all(nodes, "group-2")
    return nodes


@pytest.mark.parametrize(
    ("have_read", "is_told"),
    [((False, False), True), ((True, False), False), ((None, False), False), ((False, None), False)],
)
def test_it_is_told_where_no_node_has_read_anything(run_monitor, root, tmp_path, have_read, is_told):
    async def scenario(monitor: ObservedMonitor) -> None:
        nodes = await resume_two(monitor, root, tmp_path)
        for number in (1, 2, 3):
            for node in nodes:
                # In the second report it has made its first step; what it opens later may be what it writes.
                has_read = have_read[node.node_rank] if number < 3 else True
                steps = {2 * node.node_rank: 10 + number}
                await monitor.report(Report(node.attempt, node.node_rank, number, steps, has_read_checkpoint=has_read))

    run_monitor(scenario)
    told = [event.text for event in read_events(root, 1) if "without opening a file" in event.text]
    assert len(told) == is_told
    assert all(text.startswith("the script went on from step 10 without opening a file of ") for text in told)


def tell_of(run_monitor, root, tmp_path, *reports: dict[str, Any]) -> list[str]:
    """What is said when the nodes of a job that resumes at step 10 of 20 report this, one after the other."""

    async def scenario(monitor: ObservedMonitor) -> None:
        nodes = await resume_two(monitor, root, tmp_path)
        for number, report in enumerate(reports, 1):
            for node in nodes:
                if node.node_rank in report:
                    await monitor.report(
                        Report(
                            node.attempt,
                            node.node_rank,
                            number,
                            total_train_steps=20,
                            **{"steps": {}, **report[node.node_rank]},
                        )
                    )

    run_monitor(scenario)
    return [event.text for event in read_events(root, 1) if "began at" in event.text or "it loaded" in event.text]


def first(*steps: int, number: int = 1, first_rank: int = 0) -> dict[str, Any]:
    ranks = enumerate(steps, first_rank)
    return {"beginnings": {rank: Beginning(number, 100 * number + rank, step) for rank, step in ranks}}


def test_ranks_that_begin_at_different_steps_are_told_once(run_monitor, root, tmp_path):
    started_again = {0: first(14, 14, number=2), 1: first(12, number=2, first_rank=2)}
    together = {0: first(10, 10), 1: first(10, first_rank=2)}
    assert tell_of(run_monitor, root, tmp_path, together, started_again, started_again) == [
        "the ranks began at different steps: ranks 0, 1 at step 14, rank 2 at step 12. Their states do not belong "
        "together: end the job, and let all ranks load the checkpoint of one step"
    ]


def test_a_rank_that_was_started_again_is_not_compared_with_those_that_will_be(run_monitor, root, tmp_path):
    together = {0: first(10, 10), 1: first(10, first_rank=2)}
    assert tell_of(run_monitor, root, tmp_path, together, {0: first(14, 14, number=2)}) == []


def test_a_rank_that_makes_more_steps_than_there_are_has_loaded_an_earlier_one(run_monitor, root, tmp_path):
    reports = [{0: {"steps": {0: 20, 1: step}}} for step in (20, 21, 22)]
    assert tell_of(run_monitor, root, tmp_path, *reports) == [
        "rank 1 makes step 21 of 20: it loaded an earlier step than 10, from which its steps are counted, or "
        "total_train_steps is too small"
    ]
