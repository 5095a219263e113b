"""How nodes and the monitor make a checkpoint.

Long because these are the rules of one protocol, each played through by nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from simulated_nodes import (
    FailingTransfer,
    HeldTransfer,
    ObservedMonitor,
    event_texts,
    failure_of,
    join_all,
    join_ranks_of_one_node,
    save_all,
    wait_for,
)

from periflow_ray.jobs.checkpoint_status import list_all
from periflow_ray.jobs.metrics import Metric
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.spec import KeepBest
from periflow_ray.store.checkpoints import (
    Manifest,
    StoredFile,
    describe_tree,
    latest_committed,
    list_committed,
    read_manifest,
    restore,
)
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import Transfer, UploadItem


def test_a_checkpoint_of_two_nodes_is_committed_when_both_have_uploaded(run_monitor, nodes, root, tmp_path):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        metrics = [Metric(10, 0, 0, 1.0, {"loss": 0.5}), Metric(10, 1, 1, 1.0, {"loss": 9})]
        await pair[0].record(10, metrics)
        assert await save_all(pair, (10, 1)) == [None, None]
        shared, *own = describe_tree(pair[0].output_dir).files + describe_tree(pair[1].output_dir).files[1:]
        manifest = await monitor.newest_commit()
        assert manifest is not None
        assert manifest == Manifest(
            checkpoint="step-00000010",
            job_id=1,
            step=10,
            attempt=1,
            world_size=4,
            num_nodes=2,
            created_unix_s=manifest.created_unix_s,
            files=(
                StoredFile("model.pt", 7, shared.checksum, 0, "files/model.pt"),
                StoredFile("rng.pt", 6, own[0].checksum, 0, "files/rng.pt"),
                StoredFile("rng.pt", 6, own[1].checksum, 1, "node-1/rng.pt"),
            ),
            metrics={"loss": 0.5},
        )
        assert list_committed(root, 1) == [manifest]

    run_monitor(scenario)
    assert event_texts(root) == [("checkpoint", "checkpoint step-00000010 committed at step 10 (19 B)")]
    manifest = latest_committed(root, 1)
    assert manifest is not None
    restore(root, manifest, 1, tmp_path / "restored")
    assert (tmp_path / "restored" / "rng.pt").read_bytes() == b"node 1"


def test_a_file_that_is_equal_on_all_nodes_is_uploaded_by_the_first(run_monitor, nodes):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        begun = await asyncio.gather(
            *(monitor.begin_checkpoint(1, n.node_rank, (1, 1), describe_tree(n.output_dir)) for n in pair)
        )
        assert [(assignment.name, [file.key for file in assignment.files]) for assignment in begun] == [
            ("step-00000001", ["files/model.pt", "files/rng.pt"]),
            ("step-00000001", ["node-1/rng.pt"]),
        ]

    run_monitor(scenario)


def test_a_checkpoint_of_which_not_even_the_failure_can_be_recorded_holds_nobody_up(
    run_monitor, nodes, root, monkeypatch
):
    def refuse(*arguments: object) -> None:
        raise RuntimeError("whatever it is")

    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        full = FailingTransfer(root, OSError(28, "No space left on device"))
        with monkeypatch.context() as patch:
            patch.setattr("periflow_ray.store.checkpoints.mark_failed", refuse)
            outcomes = await asyncio.gather(first.save((10, 1)), second.save((10, 1), full))
        assert [outcome is None for outcome in outcomes] == [False, False]
        assert await save_all([first, second], (20, 1)) == [None, None]

    run_monitor(scenario)


def test_an_upload_that_fails_on_one_node_commits_nothing_and_the_next_one_works(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        reason = "node 1: [Errno 28] No space left on device"
        full = FailingTransfer(root, OSError(28, "No space left on device"))
        assert await asyncio.gather(first.save((10, 1)), second.save((10, 1), full)) == [reason, reason]
        assert list_committed(root, 1) == []
        assert await save_all([first, second], (20, 1)) == [None, None]

    run_monitor(scenario)
    assert [manifest.checkpoint for manifest in list_committed(root, 1)] == ["step-00000020"]
    assert event_texts(root) == [
        ("checkpoint_failed", "checkpoint at step 10 was not saved: node 1: [Errno 28] No space left on device"),
        ("checkpoint", "checkpoint step-00000020 committed at step 20 (19 B)"),
    ]


def test_a_node_that_fails_before_its_files_are_copied_leaves_no_half_checkpoint(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        saving = await first.begin_save((10, 1))
        await second.leave(failure_of(1))
        assert await saving == "node 1 ended before its files were copied"

    run_monitor(scenario)
    assert list_committed(root, 1) == []
    assert event_texts(root) == [
        ("attempt_failed", "attempt 1 failed: node 1: it ended with exit code 1."),
        ("checkpoint_failed", "checkpoint at step 10 was not saved: node 1 ended before its files were copied"),
    ]


def test_a_node_that_failed_earlier_leaves_no_half_checkpoint_either(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await second.leave(failure_of(1))
        assert await first.save((10, 1)) is not None

    run_monitor(scenario)
    assert list_committed(root, 1) == []


def test_a_node_that_is_beyond_the_step_is_not_waited_for(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await first.record(10)
        await second.record(9)
        saving = await first.begin_save((10, 1))
        await second.record(10)
        await asyncio.sleep(0)
        assert not saving.done()
        await second.record(11)
        assert await saving is None

    run_monitor(scenario)
    (manifest,) = list_committed(root, 1)
    assert [(file.path, file.node_rank) for file in manifest.files] == [("model.pt", 0), ("rng.pt", 0)]


def test_a_node_that_trains_on_while_its_snapshot_is_described_still_takes_part(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        # Both have taken their snapshot of step 10; node 1's is large, so its ranks are at step 11 when it comes.
        await second.announce((10, 1))
        saving = await first.begin_save((10, 1))
        await second.record(11)
        assert await asyncio.gather(saving, second.save((10, 1))) == [None, None]

    run_monitor(scenario)
    (manifest,) = list_committed(root, 1)
    assert {file.node_rank for file in manifest.files} == {0, 1}


def test_a_node_that_ended_well_is_not_waited_for(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await second.leave()
        assert await first.save((10, 1)) is None

    run_monitor(scenario)
    assert len(list_committed(root, 1)) == 1


def test_a_second_upload_of_one_step_gets_a_number(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        # Also while the first one is still on its way.
        assert await asyncio.gather(save_all(pair, (10, 1)), save_all(pair, (10, 2))) == [[None, None]] * 2
        assert await save_all(pair, (10, 3)) == [None, None]

    run_monitor(scenario)
    assert [manifest.checkpoint for manifest in list_committed(root, 1)] == [
        "step-00000010",
        "step-00000010.2",
        "step-00000010.3",
    ]


def test_a_checkpoint_of_a_function_job_counts_its_nodes_not_its_ranks(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        await join_ranks_of_one_node(monitor)
        assert await nodes(monitor, 1)[0].save((10, 1)) is None

    run_monitor(scenario)
    assert [manifest.num_nodes for manifest in list_committed(root, 1)] == [1]


def test_a_file_that_did_not_change_is_copied_within_the_storage_root(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        (node,) = nodes(monitor, 1)
        await node.join()
        assert await node.save((10, 1)) is None
        (node.output_dir / "rng.pt").write_bytes(b"another")
        assignment = await monitor.begin_checkpoint(1, 0, (20, 1), describe_tree(node.output_dir))
        assert (assignment.name, [(file.path, file.copy_from) for file in assignment.files]) == (
            "step-00000020",
            [("model.pt", "step-00000010/files/model.pt"), ("rng.pt", None)],
        )
        # The node itself asks for it once more, and gets the same answer.
        assert await node.save((20, 1)) is None

    run_monitor(scenario, num_members=1)
    assert restored_files(root, "step-00000020") == {"model.pt": b"weights", "rng.pt": b"another"}


def test_after_a_restart_a_nodes_new_file_wins_over_what_the_others_were_given(run_monitor, nodes, root, tmp_path):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        (pair[0].output_dir / "old.ckpt").write_bytes(b"old")
        (pair[1].output_dir / "shard-1").write_bytes(b"shard 1 of step 10")
        await save_all(pair, (10, 1))
        starts = await join_all(pair, "group-2")
        for node, start in zip(pair, starts, strict=True):
            restore(root, start.checkpoint, node.node_rank, node.output_dir)
        (pair[0].output_dir / "old.ckpt").unlink()
        (pair[1].output_dir / "shard-1").write_bytes(b"shard 1 of step 20")
        assert await save_all(pair, (20, 1)) == [None, None]

    run_monitor(scenario)
    manifest = read_manifest(root, 1, "step-00000020")
    assert [(file.path, file.node_rank) for file in manifest.files] == [
        ("model.pt", 0),
        ("rng.pt", 0),
        ("rng.pt", 1),
        ("shard-1", 1),
    ]
    restore(root, manifest, 0, tmp_path / "restored")
    assert (tmp_path / "restored" / "shard-1").read_bytes() == b"shard 1 of step 20"


def test_a_withdrawn_checkpoint_is_told_to_all_and_the_next_one_works(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await second.announce((10, 1))
        saving = await first.begin_save((10, 1))
        await monitor.withdraw_snapshot(1, (10, 1), "replaced by that of step 20 before its upload")
        assert await saving == "replaced by that of step 20 before its upload"
        assert await save_all([first, second], (20, 1)) == [None, None]

    run_monitor(scenario)
    assert [manifest.step for manifest in list_committed(root, 1)] == [20]


def test_only_the_newest_and_the_best_checkpoints_are_kept(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        (node,) = nodes(monitor, 1)
        await node.join()
        for step, loss in [(10, 3.0), (20, 1.0), (30, 2.0), (40, 4.0)]:
            await node.record(step, [Metric(step, 0, 0, 1.0, {"loss": loss})])
            assert await node.save((step, 1)) is None

    run_monitor(
        scenario, num_members=1, retention=Retention(keep_last=2, keep_best=KeepBest(metric="loss", mode="min"))
    )
    assert [manifest.step for manifest in list_committed(root, 1)] == [20, 30, 40]


def test_a_manifest_has_the_metrics_of_its_step_however_long_the_upload_takes(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        first, second = nodes(monitor)
        await join_all([first, second])
        await first.record(10, [Metric(10, 0, 0, 1.0, {"loss": 3.0})])
        await first.announce((10, 1))
        await first.record(11, [Metric(11, 0, 0, 2.0, {"loss": 2.0})])
        await second.announce((10, 1))
        assert await save_all([first, second], (10, 1)) == [None, None]

    run_monitor(scenario)
    assert [dict(manifest.metrics) for manifest in list_committed(root, 1)] == [{"loss": 3.0}]


def test_checkpoints_of_earlier_attempts_count_for_what_is_kept(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        (node,) = nodes(monitor, 1)
        for step in (10, 20):
            await node.join(f"group-{step}")
            assert await node.save((step, 1)) is None

    run_monitor(scenario, num_members=1, retention=Retention(keep_last=1))
    assert [manifest.step for manifest in list_committed(root, 1)] == [20]


def test_a_checkpoint_that_one_node_finds_damaged_is_used_by_none(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        for step in (10, 20):
            await save_all(pair, (step, 1))
        starts = await join_all(pair, "group-2")
        assert [start.checkpoint.step for start in starts] == [20, 20]
        verdicts = await asyncio.gather(
            monitor.settle_restore(0, "step-00000020", None),
            monitor.settle_restore(1, "step-00000020", "'model.pt' differs"),
        )
        assert [(verdict.is_agreed, verdict.checkpoint.step) for verdict in verdicts] == [(False, 10)] * 2
        verdicts = await asyncio.gather(*(monitor.settle_restore(rank, "step-00000010", None) for rank in range(2)))
        assert [(verdict.is_agreed, verdict.checkpoint.step) for verdict in verdicts] == [(True, 10)] * 2
        # Nor in the next attempt.
        assert [start.checkpoint.step for start in await join_all(pair, "group-3")] == [10, 10]

    run_monitor(scenario)
    assert ("note", "checkpoint step-00000020 is not used: 'model.pt' differs") in event_texts(root)


def test_a_damaged_checkpoint_is_no_source_of_copies_and_none_to_keep_also_for_later_drivers(run_monitor, nodes, root):
    async def train(monitor: ObservedMonitor) -> None:
        (node,) = nodes(monitor, 1)
        await node.join()
        for step in (10, 20):
            (node.output_dir / "weights").write_text(str(step))
            assert await node.save((step, 1)) is None

    async def restore_and_save(monitor: ObservedMonitor) -> None:
        (node,) = nodes(monitor, 1)
        assert (await node.join("group-2")).checkpoint.step == 20
        await monitor.settle_restore(0, "step-00000020", "'weights' differs")
        assert (await monitor.settle_restore(0, "step-00000010", None)).is_agreed
        # The driver that knows of it ends here.

    async def go_on(monitor: ObservedMonitor) -> None:
        (node,) = nodes(monitor, 1)
        start = await node.join("group-3")
        assert start.checkpoint.step == 10
        assert (await monitor.settle_restore(0, "step-00000010", None)).is_agreed
        (node.output_dir / "weights").write_text("20")
        assert await node.save((30, 1)) is None

    retention = Retention(keep_last=2)
    run_monitor(train, num_members=1, retention=retention)
    run_monitor(restore_and_save, num_members=1, retention=retention)
    (kept,) = [entry for entry in list_all(root, 1) if entry.status == "damaged"]
    assert (kept.name, kept.reason) == ("step-00000020", "'weights' differs")
    root.write_bytes("jobs/1/checkpoints/step-00000020/files/weights", b"??")

    run_monitor(go_on, num_members=1, retention=retention)
    assert [manifest.step for manifest in list_committed(root, 1)] == [10, 30]
    assert root.read_bytes("jobs/1/checkpoints/step-00000030/files/weights") == b"20"


def test_a_checkpoint_without_a_file_is_not_committed_and_takes_no_ones_place(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        assert await save_all(pair, (10, 1)) == [None, None]
        kept = {node: list(node.output_dir.iterdir()) for node in pair}
        for node in pair:
            for path in kept[node]:
                path.unlink()
        reasons = await save_all(pair, (20, 1))
        assert all(str(reason).startswith("no node has a file in output_checkpoint_dir") for reason in reasons)
        # One node with a file is enough.
        (pair[1].output_dir / "model.pt").write_text("weights")
        assert await save_all(pair, (30, 1)) == [None, None]
        for path in pair[1].output_dir.iterdir():
            path.unlink()
        assert None not in await save_all(pair, (40, 1))

    run_monitor(scenario, retention=Retention(keep_last=2))
    assert [manifest.step for manifest in list_committed(root, 1)] == [10, 30]


def test_a_member_that_fails_while_restoring_does_not_keep_the_others_waiting(run_monitor, nodes):
    async def scenario(monitor: ObservedMonitor) -> None:
        pair = nodes(monitor)
        await join_all(pair)
        await save_all(pair, (10, 1))
        await join_all(pair, "group-2")
        waiting = asyncio.create_task(monitor.settle_restore(0, "step-00000010", None))
        await pair[1].leave(failure_of(1))
        assert (await waiting).is_agreed

    run_monitor(scenario)


def test_what_a_killed_attempt_left_half_uploaded_is_told_and_removed(run_monitor, nodes, root):
    async def scenario(monitor: ObservedMonitor) -> None:
        (node,) = nodes(monitor, 1)
        await node.join()
        half = HalfTransfer(root)
        await node.begin_save((10, 1), half)
        await wait_for(half.is_held.is_set)
        await node.join("group-2")
        half.let_go()

    run_monitor(scenario, num_members=1)
    (entry,) = list_all(root, 1)
    assert (entry.status, entry.reason) == ("partial", "the attempt ended before all of it was uploaded")
    assert root.list_names("jobs/1/checkpoints/step-00000010") == ["uploading.json"]


class HalfTransfer(HeldTransfer):
    """Uploads the first file, and gets no further."""

    def upload_files(self, items: Sequence[UploadItem]) -> None:
        Transfer.upload_files(self, items[:1])
        super().upload_files([])


def restored_files(root: StorageRoot, name: str) -> dict[str, bytes]:
    target = Path(root.base_path) / "restored"
    restore(root, read_manifest(root, 1, name), 0, target)
    return {path.name: path.read_bytes() for path in target.iterdir()}
