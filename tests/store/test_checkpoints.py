"""What becomes of checkpoints in the monitor.

Long because it follows a checkpoint through its whole life.
"""

from __future__ import annotations

import json
from collections import Counter

import pytest
from support.stored_checkpoints import STEP_10, STEP_20, BreakingRoot, save

from periflow_ray.errors import CorruptCheckpointError, NotFoundError, StorageError
from periflow_ray.spec import KeepBest
from periflow_ray.store.checkpoints import (
    CheckpointSummary,
    Manifest,
    UploadNote,
    begin,
    checkpoint_key,
    choose_name,
    commit,
    destroy_committed,
    find_checkpoint,
    latest_committed,
    list_committed,
    mark_failed,
    put_into_trash,
    read_manifest,
    read_summaries,
    read_upload_note,
    sweep,
    verify,
)
from periflow_ray.store.checkpoints.retention import choose_expired


def test_a_second_checkpoint_of_a_step_gets_a_number(root):
    assert choose_name(root, 1, 30) == "step-00000030"
    assert choose_name(root, 1, 30, pending=["step-00000030"]) == "step-00000030.2"
    begin(root, 1, "step-00000030", step=30, attempt=1)
    begin(root, 1, "step-00000030.2", step=30, attempt=1)
    assert choose_name(root, 1, 30) == "step-00000030.3"
    assert choose_name(root, 2, 30) == "step-00000030"


def test_a_committed_checkpoint_reads_back_and_is_no_longer_on_its_way(root, tmp_path):
    manifest = save(
        root, tmp_path, {0: {"model.pt": b"weights", "rng": b"0"}, 1: {"model.pt": b"weights", "rng": b"1"}}
    )
    assert read_manifest(root, 1, STEP_10) == manifest
    assert list_committed(root, 1) == [manifest]
    assert (manifest.size, manifest.checkpoint_id) == (9, "1/step-00000010")
    assert set(root.list_files(checkpoint_key(1, STEP_10))) == {
        "files/model.pt",
        "files/rng",
        "manifest.json",
        "node-1/rng",
    }


def test_a_manifest_of_a_later_version_is_read_as_far_as_it_is_known(root, tmp_path):
    manifest = save(root, tmp_path, {0: {"model.pt": b"weights"}})
    key = checkpoint_key(1, STEP_10, "manifest.json")
    document = root.read_json(key)
    document["encryption"] = None
    document["files"][0]["parts"] = []
    root.write_json(key, document)
    assert read_manifest(root, 1, STEP_10) == manifest


def test_without_its_manifest_a_checkpoint_does_not_exist(root, tmp_path):
    manifest = save(root, tmp_path, {0: {"model.pt": b"weights"}})
    root.write_bytes(checkpoint_key(1, STEP_20, "files", "x"), b"x")
    assert list_committed(root, 1) == [manifest]
    assert latest_committed(root, 1) == manifest
    with pytest.raises(NotFoundError):
        read_manifest(root, 1, STEP_20)


@pytest.mark.parametrize(
    "damage", [b"", b'{"checkpoint": "step-0000', b"null", b"[]", b'{"files": [{"path": "a"}]}', b"{}", b"\xff"]
)
def test_a_damaged_manifest_is_said_to_be_and_the_one_before_is_the_latest(root, tmp_path, damage):
    older = save(root, tmp_path, {0: {"model.pt": b"old"}}, step=10)
    save(root, tmp_path, {0: {"model.pt": b"new"}}, step=20)
    key = checkpoint_key(1, STEP_20, "manifest.json")
    root.write_bytes(key, damage)
    with pytest.raises(CorruptCheckpointError) as caught:
        read_manifest(root, 1, STEP_20)
    assert str(caught.value).startswith(f"the manifest '{key}' is damaged: ")
    assert latest_committed(root, 1) == older
    assert list_committed(root, 1) == [older]


def test_the_latest_checkpoint_is_the_one_of_the_highest_step(root, tmp_path):
    names = []
    for step in (9, 10, 100_000_000, 10):
        names.append(save(root, tmp_path, {0: {"step": str(step).encode()}}, step=step).checkpoint)
    assert names == ["step-00000009", "step-00000010", "step-100000000", "step-00000010.2"]
    listed = [manifest.checkpoint for manifest in list_committed(root, 1)]
    assert listed == ["step-00000009", "step-00000010", "step-00000010.2", "step-100000000"]
    latest = [latest_committed(root, 1, skip=skip) for skip in ((), ("step-100000000",), set(names))]
    assert [manifest and manifest.checkpoint for manifest in latest] == ["step-100000000", "step-00000010.2", None]
    assert latest_committed(root, 2) is None


class UnreadableRoot(BreakingRoot):
    """A root that lists names and reads nothing."""

    def read_bytes(self, key, start=None):
        raise StorageError("no answer in time")


def test_an_older_checkpoint_is_not_taken_because_the_root_does_not_answer(root, tmp_path):
    save(root, tmp_path, {0: {"model.pt": b"weights"}})
    unreadable = UnreadableRoot(root.uri, 0)
    for read in (lambda: latest_committed(unreadable, 1), lambda: list_committed(unreadable, 1)):
        with pytest.raises(StorageError, match="no answer in time"):
            read()


def test_a_checkpoint_is_found_by_its_id(root, tmp_path):
    manifest = save(root, tmp_path, {0: {"model.pt": b"weights"}}, step=400, job_id=12)
    assert manifest.checkpoint_id == "12/step-00000400"
    assert find_checkpoint(root, "12/step-00000400") == manifest


@pytest.mark.parametrize(
    ("checkpoint_id", "suggestion"),
    [
        ("12/step-0000400", " Did you mean '12/step-00000400'?"),
        ("12", " Did you mean '12/step-00000400'?"),
        ("13/step-00000400", ""),
        ("step-00000400", ""),
        ("12/../12/step-00000400", " Did you mean '12/step-00000400'?"),
        ("", ""),
    ],
)
def test_an_id_that_names_no_checkpoint_is_answered_with_what_one_looks_like(root, tmp_path, checkpoint_id, suggestion):
    save(root, tmp_path, {0: {"model.pt": b"weights"}}, step=400, job_id=12)
    with pytest.raises(NotFoundError) as caught:
        find_checkpoint(root, checkpoint_id)
    assert str(caught.value) == (
        f"checkpoint '{checkpoint_id}' does not exist.{suggestion} An ID is <job>/<name>, for example "
        "12/step-00000400, or the name it was uploaded with. List them: periflow-ray checkpoint list"
    )


def test_an_id_of_an_uncommitted_checkpoint_is_answered_with_why(root):
    begin(root, 1, STEP_10, step=10, attempt=1)
    with pytest.raises(NotFoundError, match=f"^checkpoint '1/{STEP_10}' is not committed; it is still being uploaded$"):
        find_checkpoint(root, f"1/{STEP_10}")
    mark_failed(root, 1, STEP_10, "node 1 failed")
    with pytest.raises(NotFoundError, match=f"'1/{STEP_10}' is not committed; it is partial: node 1 failed$"):
        find_checkpoint(root, f"1/{STEP_10}")


def test_a_checkpoint_that_failed_keeps_its_name_and_reason_but_no_files(root):
    begin(root, 1, STEP_10, step=10, attempt=2)
    root.write_bytes(checkpoint_key(1, STEP_10, "files", "model.pt"), b"weig")
    root.write_bytes(checkpoint_key(1, STEP_10, "node-1", "rng"), b"1")
    mark_failed(root, 1, STEP_10, "the disk is full")
    note = read_upload_note(root, 1, STEP_10)
    assert note == UploadNote(10, 2, note.started_unix_s, "the disk is full")
    assert note.started_unix_s is not None
    assert set(root.list_files(checkpoint_key(1, STEP_10))) == {"uploading.json"}
    assert choose_name(root, 1, 10) == "step-00000010.2"


def test_a_new_attempt_gives_up_what_the_one_before_left_uncommitted(root, tmp_path):
    committed = save(root, tmp_path, {0: {"model.pt": b"weights"}}, step=10)
    root.write_bytes(checkpoint_key(1, STEP_10, "uploading.json"), b"{}")
    for step in (20, 30, 40, 50):
        root.write_bytes(checkpoint_key(1, f"step-{step:08d}", "files", "model.pt"), b"weig")
    begin(root, 1, STEP_20, step=20, attempt=1)
    # A note that was cut short, a failure that was told before, and files that nobody has told of.
    root.write_bytes(checkpoint_key(1, "step-00000030", "uploading.json"), b'{"step": 3')
    root.write_json(checkpoint_key(1, "step-00000040", "uploading.json"), {"step": 40, "reason": "the disk is full"})
    assert sweep(root, 1, "attempt 1 ended before it was committed").given_up == [
        STEP_20,
        "step-00000030",
        "step-00000050",
    ]
    assert list_committed(root, 1) == [committed]
    assert verify(root, committed) == []
    assert set(root.list_files(checkpoint_key(1, STEP_10))) == {"files/model.pt", "manifest.json"}
    for step, reason in ((20, None), (30, None), (40, "the disk is full"), (50, None)):
        assert set(root.list_files(checkpoint_key(1, f"step-{step:08d}"))) == {"uploading.json"}
        note = read_upload_note(root, 1, f"step-{step:08d}")
        assert (note.step, note.reason) == (step, reason or "attempt 1 ended before it was committed")
    assert sweep(root, 1, "another reason").given_up == []


class CountingRoot(BreakingRoot):
    """A root that counts what is asked of it, by method and checkpoint."""

    def __init__(self, uri):
        super().__init__(uri, 10**9)
        self.asked = Counter()

    def list_names(self, prefix):
        self.asked["list_names", prefix] += 1
        return super().list_names(prefix)

    def list_files(self, prefix):
        self.asked["list_files", prefix] += 1
        return super().list_files(prefix)

    def read_bytes(self, key, start=None):
        self.asked["read_bytes", key] += 1
        return super().read_bytes(key, start)


def test_a_sweep_asks_once_for_the_names_and_once_for_each_checkpoint_that_is_not_known(root, tmp_path):
    for step in (10, 20, 30):
        save(root, tmp_path, {0: {"model.pt": b"weights"}}, step=step)
    root.write_bytes(checkpoint_key(1, "step-00000040", "files", "model.pt"), b"weig")
    counting = CountingRoot(root.uri)
    swept = sweep(counting, 1, "attempt 1 ended", known={STEP_10, "step-00000030"})
    assert swept.given_up == ["step-00000040"]
    assert swept.committed == [STEP_10, STEP_20, "step-00000030"]
    committed = {key: times for key, times in counting.asked.items() if "step-00000040" not in key[1]}
    assert committed == {("list_names", "jobs/1/checkpoints"): 1, ("list_names", checkpoint_key(1, STEP_20)): 1}

    again = CountingRoot(root.uri)
    assert sweep(again, 1, "attempt 2 ended", known=swept.committed).given_up == []
    # What was given up before keeps its note, and is not looked through for files.
    assert ("list_files", checkpoint_key(1, "step-00000040")) not in again.asked


def test_a_sweep_counts_what_is_deleted_or_gone_as_neither(root, tmp_path):
    for step in (10, 20, 30):
        save(root, tmp_path, {0: {"model.pt": b"weights"}}, step=step)
    put_into_trash(root, read_manifest(root, 1, STEP_10), restorable_until_unix_s=2e9)
    destroy_committed(root, 1, STEP_20)
    swept = sweep(root, 1, "attempt 1 ended", known=["step-00000040"])
    assert (swept.given_up, swept.committed) == ([], ["step-00000030"])


def test_a_summary_has_no_files_and_needs_none(root, tmp_path):
    first = save(root, tmp_path, {0: {"model.pt": b"weights"}}, step=10, metrics={"loss": 0.5})
    second = save(root, tmp_path, {0: {"model.pt": b"weights"}}, step=20, metrics={"loss": 0.25})
    root.write_bytes(checkpoint_key(1, "step-00000030", "manifest.json"), b'{"checkpoint": "step-0000')
    names = ["step-00000001", STEP_10, STEP_20, "step-00000030"]
    summaries = read_summaries(root, 1, names)
    assert summaries == [first.summary(), second.summary()]
    assert summaries == [CheckpointSummary(STEP_10, 10, {"loss": 0.5}), CheckpointSummary(STEP_20, 20, {"loss": 0.25})]
    assert choose_expired(summaries, keep_best=KeepBest(metric="loss", mode="max")) == []
    assert choose_expired(summaries, keep_best=KeepBest(metric="loss", mode="min")) == [first.summary()]


def test_a_removed_checkpoint_is_gone_with_its_files_and_others_stay(root, tmp_path):
    first = save(root, tmp_path, {0: {"model.pt": b"weights"}}, step=10)
    second = save(root, tmp_path, {0: {"model.pt": b"weights"}}, step=20, previous=first)
    destroy_committed(root, 1, STEP_10)
    assert {key.partition("/")[0] for key in root.list_files("jobs/1/checkpoints")} == {STEP_20}
    assert list_committed(root, 1) == [second]
    assert verify(root, second) == []
    destroy_committed(root, 1, STEP_10)


@pytest.mark.parametrize("num_changes", range(5))
def test_wherever_a_commit_breaks_off_the_checkpoint_is_whole_or_not_there(root, tmp_path, num_changes):
    manifest = save(root, tmp_path, {0: {"model.pt": b"weights"}})
    root.delete(checkpoint_key(1, STEP_10, "manifest.json"))
    begin(root, 1, STEP_10, step=10, attempt=1)
    breaking = BreakingRoot(root.uri, num_changes)
    if num_changes == 0:
        with pytest.raises(StorageError):
            commit(breaking, manifest)
        assert list_committed(root, 1) == []
        mark_failed(root, 1, STEP_10, "the commit failed")
        assert list_committed(root, 1) == []
    else:
        # The note that is left over counts for nothing.
        commit(breaking, manifest)
        assert sweep(root, 1, "left over").given_up == []
        assert list_committed(root, 1) == [manifest]
        assert verify(root, manifest) == []


class AnswerlessRoot(BreakingRoot):
    """A root that does the first write, but whose answer is lost."""

    def write_bytes(self, key, content):
        super().write_bytes(key, content)
        raise StorageError("no answer in time")


def test_a_commit_whose_answer_was_lost_is_a_commit(root, tmp_path):
    manifest = save(root, tmp_path, {0: {"model.pt": b"weights"}}, metrics={"loss": float("nan")})
    root.delete(checkpoint_key(1, STEP_10, "manifest.json"))
    commit(AnswerlessRoot(root.uri, 1), manifest)
    assert json.loads(root.read_bytes(checkpoint_key(1, STEP_10, "manifest.json")))["step"] == 10


@pytest.mark.parametrize("num_changes", range(6))
@pytest.mark.parametrize("give_up", ["mark_failed", "destroy_committed"])
def test_wherever_giving_up_breaks_off_no_half_checkpoint_is_visible(root, tmp_path, num_changes, give_up):
    manifest = save(root, tmp_path, {0: {"a.pt": b"aa", "b.pt": b"bb"}, 1: {"a.pt": b"11"}})
    breaking = BreakingRoot(root.uri, num_changes)
    try:
        if give_up == "destroy_committed":
            destroy_committed(breaking, 1, STEP_10)
        else:
            mark_failed(breaking, 1, STEP_10, "node 1 failed")
    except StorageError:
        visible = list_committed(root, 1)
        assert visible in ([], [manifest])
        assert all(verify(root, manifest) == [] for manifest in visible)


def test_a_manifest_may_come_from_a_job_or_from_nowhere():
    manifest = Manifest("resnet", None, 0, 0, 0, 1, 0.0, ())
    assert manifest.checkpoint_id == "resnet"
    assert checkpoint_key(None, "resnet", "manifest.json") == "checkpoints/resnet/manifest.json"
    assert checkpoint_key(3, STEP_10, "files", "a") == "jobs/3/checkpoints/step-00000010/files/a"
