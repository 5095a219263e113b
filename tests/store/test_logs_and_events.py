from __future__ import annotations

import time

import pytest

from periflow_ray.errors import NewerFormatError
from periflow_ray.jobs.events import Event, EventWriter, read_events
from periflow_ray.jobs.logs import LogFollower, LogLine, LogWriter, iterate_logs, read_logs


def test_events_read_back_in_time_order_from_all_writers(root):
    before_unix_s = time.time()
    driver, node = EventWriter(root, 1, "driver"), EventWriter(root, 1, "node-0")
    driver.write("allocating", "asks for 2 x (1 CPU)")
    node.write("note", "mount paths are rewritten", attempt=1)
    driver.write("failed", "node 0, rank 1: it ended with exit code 3.", attempt=1)
    events = read_events(root, 1)
    times = [event.time_unix_s for event in events]
    assert events == [
        Event(times[0], "allocating", "asks for 2 x (1 CPU)", 0),
        Event(times[1], "note", "mount paths are rewritten", 1),
        Event(times[2], "failed", "node 0, rank 1: it ended with exit code 3.", 1),
    ]
    assert before_unix_s <= times[0] <= times[1] <= times[2] <= time.time()
    assert read_events(root, 2) == []


def test_a_note_that_an_earlier_version_stored_under_another_kind_is_a_note(root):
    EventWriter(root, 1, "driver").write("notice", "mount paths are rewritten")
    assert [event.kind for event in read_events(root, 1)] == ["note"]


def test_log_lines_of_all_nodes_are_merged_in_time_order(root):
    first, second = LogWriter(root, 1, 0), LogWriter(root, 1, 11)
    first.write("epoch 1", time_unix_ms=1000)
    second.write("epoch 1 on the other node", time_unix_ms=1500)
    first.write("epoch 2", time_unix_ms=2000)
    first.flush()
    second.flush()
    assert read_logs(root, 1) == [
        LogLine(1000, 0, "epoch 1"),
        LogLine(1500, 11, "epoch 1 on the other node"),
        LogLine(2000, 0, "epoch 2"),
    ]


def test_lines_that_are_read_one_by_one_are_those_that_are_read_at_once(root):
    writers = [LogWriter(root, 1, 0), LogWriter(root, 1, 1), LogWriter(root, 1, 1, 3)]
    for number in range(30):
        writers[number * number % 3].write(f"line {number}", time_unix_ms=number // 2)
    for writer in writers:
        writer.flush()
    EventWriter(root, 1, "driver").write("note", "the job's own line")
    assert len(read_logs(root, 1)) == 31
    assert list(iterate_logs(root, 1)) == read_logs(root, 1)


def test_log_lines_keep_their_text_as_it_was(root):
    lines = ["", "  indented  ", "1234 starts with a number", "손실 0.5 ✓", "tab\tand\rreturn", '{"json": true}']
    writer = LogWriter(root, 1, 0)
    for number, line in enumerate(lines):
        writer.write(line, time_unix_ms=number)
    writer.write("two\nlines", time_unix_ms=99)
    writer.write("half a pair \ud83d", time_unix_ms=100)
    writer.flush()
    assert [line.text for line in read_logs(root, 1)] == [*lines, "two", "lines", "half a pair ?"]


def test_ranks_of_a_function_job_write_streams_of_their_own_and_are_read_as_their_node(root):
    for node_rank, rank in ((0, 0), (0, 1), (1, 2)):
        writer = LogWriter(root, 1, node_rank, rank)
        writer.write(f"rank {rank}", time_unix_ms=rank)
        writer.flush()
    assert root.list_names("jobs/1/logs") == ["node-0-rank-0", "node-0-rank-1", "node-1-rank-2"]
    assert read_logs(root, 1) == [LogLine(0, 0, "rank 0"), LogLine(1, 0, "rank 1"), LogLine(2, 1, "rank 2")]


def test_a_follower_gets_lines_and_events_once_also_of_nodes_that_join_later(root):
    follower = LogFollower(root, 1)
    assert follower.read_new() == []
    first = LogWriter(root, 1, 0)
    first.write("one", time_unix_ms=1)
    first.flush()
    assert follower.read_new() == [LogLine(1, 0, "one")]
    second = LogWriter(root, 1, 1)
    second.write("two", time_unix_ms=2)
    second.flush()
    EventWriter(root, 1, "driver").write("running", "attempt 1 runs the command")
    found = follower.read_new()
    assert found == [LogLine(2, 1, "two"), LogLine(found[1].time_unix_ms, None, "attempt 1 runs the command")]
    assert follower.read_new() == []


def test_a_stored_line_can_be_searched_with_grep(local_root):
    writer = LogWriter(local_root, 1, 0)
    writer.write("loss 0.5", time_unix_ms=1_700_000_000_123)
    writer.flush()
    path = local_root.local_path("jobs/1/logs/node-0/00000000")
    assert path.read_text() == "1700000000123 loss 0.5\n"


EVENT = b'{"time_unix_s": 5.0, "kind": "running", "text": "attempt 1 runs", "node": {"rank": 1}}\n'


@pytest.mark.parametrize(
    "spoiled",
    [
        EVENT[: len(EVENT) // 2],
        EVENT[: len(EVENT) // 2] + b"\n",
        b"\xff\x00\n",
        b"[]\n",
        b'{"kind": "running"}\n',
        b"\n",
    ],
)
def test_a_damaged_event_spoils_that_event_only(root, spoiled):
    root.write_bytes("jobs/1/events/driver/00000000", EVENT + spoiled)
    follower = LogFollower(root, 1)
    assert follower.read_new() == [LogLine(5000, None, "attempt 1 runs")]
    EventWriter(root, 1, "driver").write("failed", "node 0 was lost", attempt=1)
    assert [event.text for event in read_events(root, 1)] == ["attempt 1 runs", "node 0 was lost"]
    assert [line.text for line in follower.read_new()] == ["node 0 was lost"]


@pytest.mark.parametrize("spoiled", [b"20", b"2000 loss 0", b"20\n", b"loss 0.5\n", b"\n", b"\xff\n", b"\0\0\0\0\n"])
def test_a_damaged_log_line_spoils_that_line_only(root, spoiled):
    root.write_bytes("jobs/1/logs/node-0/00000000", b"1000 loss 1.0\n" + spoiled)
    follower = LogFollower(root, 1)
    before = [line for line in follower.read_new() if line.text]
    writer = LogWriter(root, 1, 0)
    writer.write("loss 0.25", time_unix_ms=3000)
    writer.flush()
    assert before + follower.read_new() == [LogLine(1000, 0, "loss 1.0"), LogLine(3000, 0, "loss 0.25")]
    root.write_bytes("jobs/1/logs/notes", b"somebody's own file")
    assert [line.text for line in read_logs(root, 1) if line.text] == ["loss 1.0", "loss 0.25"]


def test_events_of_a_newer_format_are_refused_with_their_key(root):
    root.write_bytes("jobs/1/events/driver/00000000", EVENT + b'{"format": 2, "what": "running"}\n')
    for read in (lambda: read_events(root, 1), lambda: read_logs(root, 1)):
        with pytest.raises(NewerFormatError, match=r"^'jobs/1/events/driver' in storage root .* has format 2, "):
            read()


def test_an_event_is_bounded_however_long_the_text_is(root):
    EventWriter(root, 1, "driver").write("note", "x" * 1_000_000)
    (event,) = read_events(root, 1)
    assert len(event.text) < 21_000
    assert "[... 980,000 characters ...]" in event.text
