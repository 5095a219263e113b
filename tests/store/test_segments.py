"""Lines in segments: written, followed and read, also while the storage fails.

Long because writer and readers are tried against each other.
"""

from __future__ import annotations

import resource
import threading
from typing import Any

import pytest
from support.flaky_storage import flaky_storage

from periflow_ray.errors import StorageError
from periflow_ray.store import segments
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.segments import SegmentFollower, SegmentWriter, iterate_lines, read_lines


def test_lines_are_visible_once_flushed(root):
    writer = SegmentWriter(root, "logs/node-0")
    writer.append(b"one\ntwo\n")
    assert read_lines(root, "logs/node-0") == []
    writer.flush()
    assert read_lines(root, "logs/node-0") == [b"one", b"two"]
    writer.append(b"three\n")
    writer.flush()
    writer.flush()
    assert read_lines(root, "logs/node-0") == [b"one", b"two", b"three"]
    assert root.list_names("logs/node-0") == ["00000000"]


def test_a_follower_gets_each_line_once(root):
    writer = SegmentWriter(root, "logs")
    follower = SegmentFollower(root, "logs")
    assert follower.read_new() == []
    for number in range(5):
        writer.append(f"line {number}\n".encode())
        writer.flush()
        assert follower.read_new() == [f"line {number}".encode()]
        assert follower.read_new() == []


def test_a_full_segment_is_closed_and_the_next_one_goes_on(root, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 20)
    writer = SegmentWriter(root, "logs")
    follower = SegmentFollower(root, "logs")
    lines = []
    for number in range(9):
        writer.append(f"line {number}\n".encode())
        writer.flush()
        lines += follower.read_new()
    assert root.list_names("logs") == ["00000000", "00000001", "00000002"]
    assert lines == read_lines(root, "logs") == [f"line {number}".encode() for number in range(9)]


def test_a_follower_that_comes_late_reads_all_segments_in_one_go(root, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1)
    writer = SegmentWriter(root, "logs")
    for number in range(12):
        writer.append(f"{number}\n".encode())
        writer.flush()
    assert SegmentFollower(root, "logs").read_new() == [str(number).encode() for number in range(12)]


def test_of_many_segments_one_is_read_at_a_time(root, monkeypatch):
    """A log may have gigabytes, and so may the metrics."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1)
    writer = SegmentWriter(root, "logs")
    for number in range(12):
        writer.append(f"{number}\n".encode())
        writer.flush()
    num_read = 0
    read_bytes = StorageRoot.read_bytes

    def count(*arguments: Any, **options: Any) -> bytes:
        nonlocal num_read
        num_read += 1
        return read_bytes(*arguments, **options)

    monkeypatch.setattr(StorageRoot, "read_bytes", count)
    for number, line in enumerate(iterate_lines(root, "logs")):
        assert (line, num_read) == (str(number).encode(), number + 1)


def test_writers_at_the_same_time_never_write_over_each_other(root, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 20)
    # Both begin before either has written: a machine that was cut off, and the one that took its place.
    writers = [SegmentWriter(root, "logs"), SegmentWriter(root, "logs")]
    expected = []
    for number in range(9):
        for name, writer in zip("ab", writers, strict=True):
            expected.append(f"line {number} of {name}".encode())
            writer.append(expected[-1] + b"\n")
            writer.flush()
    assert sorted(read_lines(root, "logs")) == sorted(expected)


def test_a_new_writer_leaves_the_old_segments_alone(root):
    for attempt in (b"first\n", b"second\n"):
        writer = SegmentWriter(root, "logs")
        writer.append(attempt)
        writer.flush()
    assert root.list_files("logs") == {"00000000": 6, "00000001": 7}
    assert read_lines(root, "logs") == [b"first", b"second"]


def test_a_last_line_that_was_cut_short_is_left_out_until_it_is_complete(root):
    root.write_bytes("logs/00000000", b"whole\nha")
    follower = SegmentFollower(root, "logs")
    assert follower.read_new() == [b"whole"]
    root.write_bytes("logs/00000000", b"whole\nhalf\n")
    assert follower.read_new() == [b"half"]


def test_a_multibyte_character_that_is_cut_in_two_comes_out_whole(root):
    content = "학습\n".encode()
    root.write_bytes("logs/00000000", content[:4])
    follower = SegmentFollower(root, "logs")
    assert follower.read_new() == []
    root.write_bytes("logs/00000000", content)
    assert follower.read_new() == ["학습".encode()]


def test_followers_keep_up_with_a_writer_in_another_thread(root, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 500)
    expected = [f"step {number} loss {number / 7}".encode() for number in range(1000)]
    has_written = threading.Event()

    def write() -> None:
        writer = SegmentWriter(root, "logs")
        for line in expected:
            writer.append(line + b"\n")
            writer.flush()
        has_written.set()

    thread = threading.Thread(target=write)
    thread.start()
    follower = SegmentFollower(root, "logs")
    lines = []
    while not has_written.is_set():
        lines += follower.read_new()
    thread.join()
    lines += follower.read_new()
    assert lines == expected


def test_lines_that_a_full_disk_cut_short_are_written_once_when_there_is_room_again(local_root):
    writer = SegmentWriter(local_root, "logs")
    writer.append(b"step 1\n")
    writer.flush()
    writer.append(b"step 2\nstep 3\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError):
            writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert local_root.read_bytes("logs/00000000") == b"step 1\nste"
    writer.append(b"step 4\n")
    writer.flush()
    assert read_lines(local_root, "logs") == [b"step 1", b"step 2", b"step 3", b"step 4"]


def test_half_a_line_that_a_killed_writer_left_spoils_no_other(root):
    root.write_bytes("logs/00000000", b"one\ntw")
    follower = SegmentFollower(root, "logs")
    assert follower.read_new() == [b"one"]
    writer = SegmentWriter(root, "logs")
    writer.append(b"three\n")
    writer.flush()
    assert follower.read_new() == [b"three"]
    assert read_lines(root, "logs") == [b"one", b"three"]


def test_lines_of_a_segment_are_not_lost_when_the_next_one_cannot_be_read(tmp_path):
    root = FailsOnce(str(tmp_path), "logs/00000001")
    root.write_bytes("logs/00000000", b"one\nha")
    root.write_bytes("logs/00000001", b"two\n")
    follower = SegmentFollower(root, "logs")
    with pytest.raises(StorageError):
        follower.read_new()
    assert follower.read_new() == [b"one", b"two"]
    assert follower.read_new() == []


def test_files_of_other_names_are_no_segments(root):
    root.write_bytes("logs/notes.txt", b"somebody's own file\n")
    writer = SegmentWriter(root, "logs")
    writer.append(b"one\n")
    writer.flush()
    assert read_lines(root, "logs") == [b"one"]
    assert root.list_names("logs") == ["00000000", "notes.txt"]


class FailsOnce(StorageRoot):
    """A root that once cannot read a key."""

    def __init__(self, uri: str, key: str) -> None:
        super().__init__(uri)
        self.failing_key: str | None = key

    def read_bytes(self, key: str, start: int | None = None) -> bytes:
        if key == self.failing_key:
            self.failing_key = None
            raise StorageError("no answer in time")
        return super().read_bytes(key, start)


def test_lines_whose_answer_was_lost_are_not_written_twice():
    with flaky_storage() as storage:
        root = StorageRoot("flaky://bucket/storage")
        writer = SegmentWriter(root, "logs")
        writer.append(b"one\ntwo\n")
        storage.failures["pipe_file's answer"] = [ValueError("no answer in time")]
        with pytest.raises(StorageError):
            writer.flush()
        writer.append(b"three\n")
        writer.flush()
        writer.append(b"four\n")
        writer.flush()
        assert root.list_files("logs") == {"00000000": 19}
        assert read_lines(root, "logs") == [b"one", b"two", b"three", b"four"]


def test_a_segment_that_another_writer_began_meanwhile_is_left_to_it():
    with flaky_storage() as storage:
        root = StorageRoot("flaky://bucket/storage")
        first, second = SegmentWriter(root, "logs"), SegmentWriter(root, "logs")
        first.append(b"one\n")
        storage.failures["pipe_file"] = [ValueError("no connection")]
        with pytest.raises(StorageError):
            first.flush()
        second.append(b"of the other\n")
        second.flush()
        first.append(b"two\n")
        first.flush()
        assert root.list_files("logs") == {"00000000": 13, "00000001": 8}
        assert read_lines(root, "logs") == [b"of the other", b"one", b"two"]


@pytest.mark.parametrize("num_lines", [0, 1, 2, 7, 30, 99, 100, 1000])
def test_the_last_lines_are_read_from_the_end(root, monkeypatch, num_lines):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 100)
    monkeypatch.setattr(segments, "_FIRST_BLOCK_BYTES", 15)
    writer = SegmentWriter(root, "logs")
    lines = [f"line {number}".encode() for number in range(100)]
    for line in lines:
        writer.append(line + b"\n")
        writer.flush()
    follower = SegmentFollower(root, "logs", num_lines)
    found = follower.read_new()
    assert found == lines[100 - len(found) :]
    assert min(num_lines, 100) <= len(found) <= min(num_lines + 20, 100)
    writer.append(b"new\n")
    writer.flush()
    assert follower.read_new() == [b"new"]


def test_little_more_than_the_last_lines_is_read(root):
    class CountingRoot(StorageRoot):
        num_bytes = 0

        def read_bytes(self, key, start=None):
            content = super().read_bytes(key, start)
            CountingRoot.num_bytes += len(content)
            return content

    writer = SegmentWriter(root, "logs")
    for _ in range(8):
        writer.append(b"x" * 99 + b"\n")
        writer.append((b"y" * 99 + b"\n") * 30_000)
        writer.flush()
    assert len(SegmentFollower(CountingRoot(root.uri), "logs", 10).read_new()) >= 10
    assert CountingRoot.num_bytes < 1_000_000


def test_a_half_line_and_a_lost_segment_are_no_lines_of_the_end(root):
    root.write_bytes("logs/00000000", b"one\ntwo\n")
    root.write_bytes("logs/00000002", b"three\nhalf")
    assert SegmentFollower(root, "logs", 2).read_new() == [b"one", b"two", b"three"]
    assert SegmentFollower(root, "logs", 1).read_new() == [b"three"]
    assert SegmentFollower(root, "none", 1).read_new() == []


def test_of_too_many_segments_those_in_the_middle_are_deleted(root, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1)
    lines = [f"line {number}".encode() for number in range(40)]
    for first in range(0, 40, 10):  # As after restarts.
        writer = SegmentWriter(root, "logs", max_segments=16)
        for line in lines[first : first + 10]:
            writer.append(line + b"\n")
            writer.flush()
    assert writer.has_deleted
    assert read_lines(root, "logs") == [*lines[:2], *lines[-14:]]
    assert SegmentFollower(root, "logs", 15).read_new() == [*lines[1:2], *lines[-14:]]
    assert not SegmentWriter(root, "others").has_deleted


def test_a_writer_is_made_and_takes_lines_while_the_storage_is_away(root: StorageRoot, monkeypatch: pytest.MonkeyPatch):
    SegmentWriter(root, "logs").append(b"never flushed\n")
    with monkeypatch.context() as away:
        away.setattr(StorageRoot, "list_names", _refuse)
        writer = SegmentWriter(root, "logs")
        writer.append(b"first\n")
        with pytest.raises(StorageError):
            writer.flush()
    other = SegmentWriter(root, "logs")
    other.append(b"of another one\n")
    other.flush()
    writer.flush()
    assert read_lines(root, "logs") == [b"of another one", b"first"]


def _refuse(root: StorageRoot, prefix: str) -> list[str]:
    raise StorageError("503 SlowDown")
