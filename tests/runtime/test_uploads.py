"""A node's uploads when something goes wrong that nobody expects: every snapshot is settled, and the next one works."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from simulated_nodes import FailingTransfer, Node, ObservedMonitor, event_texts, in_thread, join_all, save_all

from periflow_ray.runtime.member.snapshot import Snapshots
from periflow_ray.runtime.member.uploads import CheckpointUploads
from periflow_ray.runtime.monitor.contract import Report
from periflow_ray.store.checkpoints import list_committed
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import Transfer, UploadItem

UNEXPECTED = [RuntimeError("can't start new thread"), MemoryError("no memory for a part"), ValueError("a bug")]


class FailsOnce(Transfer):
    """The first upload ends with this error."""

    def __init__(self, root: StorageRoot, error: Exception) -> None:
        super().__init__(root)
        self._errors = [error]

    def upload_files(self, items: Sequence[UploadItem]) -> None:
        if self._errors:
            raise self._errors.pop()
        super().upload_files(items)


@pytest.mark.parametrize("error", UNEXPECTED, ids=lambda error: type(error).__name__)
def test_an_upload_that_ends_with_any_error_is_settled_for_all_nodes(run_monitor, nodes, root, error):
    reason = f"node 1: {type(error).__name__}: {error}"

    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        assert await asyncio.gather(first.save((10, 1)), second.save((10, 1), FailingTransfer(root, error))) == [
            reason,
            reason,
        ]
        assert await save_all([first, second], (20, 1)) == [None, None]

    run_monitor(scenario)
    assert [manifest.step for manifest in list_committed(root, 1)] == [20]
    assert event_texts(root)[0] == ("checkpoint_failed", f"checkpoint at step 10 was not saved: {reason}")


@pytest.mark.parametrize("error", UNEXPECTED, ids=lambda error: type(error).__name__)
def test_the_same_thread_uploads_what_comes_after_any_error(run_monitor, nodes, root, tmp_path, error):
    def save_four(node: Node) -> str | None:
        transfer = FailsOnce(root, error)
        snapshots_dir = tmp_path / "snapshots"
        with CheckpointUploads(root, 1, 0, node.monitor.client, node.attempt, snapshots_dir, transfer) as uploads:
            # More than may be in flight: each waits for the one before.
            for step in (10, 20, 30, 40):
                uploads.save(node.output_dir, (step, 1), Report(node.attempt, 0, step, {}))
            return uploads.finish()

    async def scenario(monitor: ObservedMonitor) -> None:
        (node,) = nodes(monitor, 1)
        await node.join()
        assert await in_thread(lambda: save_four(node)) is None

    run_monitor(scenario, num_members=1)
    assert [manifest.step for manifest in list_committed(root, 1)] == [20, 30, 40]


@pytest.mark.parametrize("error", [*UNEXPECTED, OSError(28, "No space left on device")], ids=lambda e: type(e).__name__)
def test_a_snapshot_that_cannot_be_taken_is_withdrawn_and_the_error_is_the_ranks(
    run_monitor, nodes, root, monkeypatch, error
):
    take = Snapshots.take
    errors = [error]

    def fail_once(self: Snapshots, source: object, name: str) -> object:
        if errors:
            raise errors.pop()
        return take(self, source, name)

    monkeypatch.setattr(Snapshots, "take", fail_once)

    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        with pytest.raises(type(error)):
            await first.save((10, 1))
        reason = f"node 0: {error if isinstance(error, OSError) else f'{type(error).__name__}: {error}'}"
        # Nobody waits for what will not come.
        assert await second.save((10, 1)) == reason
        assert await save_all([first, second], (20, 1)) == [None, None]

    run_monitor(scenario)
    assert [manifest.step for manifest in list_committed(root, 1)] == [20]
