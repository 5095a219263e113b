"""A job whose documents are damaged, as after a loss of power: its next driver goes on with it."""

from __future__ import annotations

import asyncio

from simulated_nodes import ObservedMonitor, event_texts, failure_of, join_all, save_all

from periflow_ray.jobs import JobRecord, write_record
from periflow_ray.jobs.resumes import claim_resume
from periflow_ray.runtime.monitor.contract import AttemptNews
from periflow_ray.store.checkpoints import list_committed
from periflow_ray.store.root import StorageRoot

TORN = b'{"format": 1, "num'


def left_out(root: StorageRoot) -> list[str]:
    """Keys of what the monitor said that it does without."""
    beginning = "left out of the job's history: '"
    texts = [text for _, text in event_texts(root) if text.startswith(beginning)]
    return [text.removeprefix(beginning).partition("'")[0] for text in texts]


def test_a_job_goes_on_though_every_document_of_its_history_is_damaged(run_monitor, nodes, root):
    write_record(root, JobRecord(1, "cifar", None, "local", "CPU", 2, 2, None, "ada", 1_700_000_000.0))

    async def first_driver(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        await save_all(pair, (10, 1))
        await pair[1].leave(failure_of(1))
        await pair[0].leave()
        assert await monitor.decide(1) == "restart"

    async def second_driver(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        # The place of the first driver's attempt is held without members; nobody is told of that one.
        attempt = asyncio.create_task(monitor.wait_for_attempt(1))
        await asyncio.sleep(0)
        assert not attempt.done()
        starts = await join_all(pair)
        assert await attempt == AttemptNews(2, 2, 2)
        assert [(start.attempt, start.checkpoint.step) for start in starts] == [(2, 10)] * 2
        assert await save_all(pair, (20, 1)) == [None, None]

    run_monitor(first_driver)
    assert claim_resume(root, 1, "driver", 1)
    documents = ["attempts/1.json", "resumes/driver-0.json"]
    for name in [*documents, "job.json", "progress.json", "state.json"]:
        root.write_bytes(f"jobs/1/{name}", TORN)
    run_monitor(second_driver)
    assert left_out(root) == [f"jobs/1/{name}" for name in documents]
    assert [(manifest.step, manifest.created_by) for manifest in list_committed(root, 1)] == [(10, "ada"), (20, None)]
