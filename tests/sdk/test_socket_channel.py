"""Ranks talk to a real session server over a real socket.

Long because it has each message in both directions.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from periflow_ray.errors import PeriFlowError
from periflow_ray.jobs.metrics import Metric
from periflow_ray.sdk import wire
from periflow_ray.sdk.channel import Hello, MetricRecord
from periflow_ray.sdk.socket_channel import SocketChannel

UNTRACKED = "Training goes on, but its progress, metrics and checkpoints are no longer recorded."


def test_steps_metrics_and_total_of_all_ranks_reach_the_member(member, join_rank):
    for rank in (0, 1):
        session = join_rank(rank, of=2, total_train_steps=40)
        for loss in (0.5, 0.25):
            with session.train_step():
                session.metric({"loss": loss + rank})
        session.use_channel_factory(None)
    member.server.close()
    records = member.server.take_records()
    times = [metric.time_unix_s for metric in records.metrics]
    assert (records.steps, records.total_train_steps) == ({0: 2, 1: 2}, 40)
    assert sorted(records.metrics, key=lambda metric: (metric.rank, metric.step)) == [
        Metric(step, rank, rank, time_unix_s, {"loss": loss + rank})
        for (rank, step, loss), time_unix_s in zip(
            [(0, 1, 0.5), (0, 2, 0.25), (1, 1, 0.5), (1, 2, 0.25)], sorted(times), strict=True
        )
    ]
    assert member.server.take_records().metrics == ()
    assert member.server.has_had_session is True


def test_a_script_that_ends_at_once_loses_nothing(member, start_rank):
    rank = start_rank("pf.init(3)\nwith pf.train_step():\n    pf.metric({'loss': 1})\npf.upload_checkpoint()\n", rank=2)
    assert rank.finish() == (0, "", "")
    member.server.close()
    records = member.server.take_records()
    assert [(metric.rank, metric.step, metric.values) for metric in records.metrics] == [(2, 1, {"loss": 1})]
    assert (records.steps, member.snapshots) == ({2: 1}, [1])


def test_a_checkpoint_meets_all_ranks_of_the_node(member, join_rank):
    sessions = [join_rank(rank, of=3) for rank in range(3)]
    arrived: list[int] = []
    seen: list[list[int]] = []
    member.on_snapshot = lambda step: seen.append(sorted(arrived))

    def train(rank: int) -> None:
        for _ in range(2):
            with sessions[rank].train_step():
                arrived.append(rank)
                sessions[rank].upload_checkpoint()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(train, range(3)))
    assert member.snapshots == [1, 2]
    assert seen == [[0, 1, 2], [0, 0, 1, 1, 2, 2]]
    assert member.notes == []


def test_a_snapshot_that_fails_fails_on_every_rank_and_the_next_one_works(member, join_rank):
    sessions = [join_rank(rank, of=2) for rank in range(2)]

    def fail(step: int) -> None:
        raise OSError(28, "No space left on device")

    def upload(session) -> str | None:
        with session.train_step():
            try:
                session.upload_checkpoint()
            except PeriFlowError as err:
                return str(err)
        return None

    with ThreadPoolExecutor(2) as pool:
        member.on_snapshot = fail
        message = "the checkpoint of step 1 could not be saved: [Errno 28] No space left on device"
        assert list(pool.map(upload, sessions)) == [message, message]
        member.on_snapshot = lambda step: None
        assert list(pool.map(upload, sessions)) == [None, None]
    assert member.snapshots == [2]


WAITS = "pf.init()\nwith pf.train_step():\n    print('waits', flush=True)\n    pf.upload_checkpoint()\nprint('saved')\n"
TRAINS = "pf.init()\nprint('trains', flush=True)\nsys.stdin.readline()\n"


def test_a_rank_that_is_killed_before_it_comes_releases_the_others(member, start_rank):
    waiting = [start_rank(WAITS, rank=0, of=3), start_rank(WAITS, rank=1, of=3)]
    training = start_rank(TRAINS, rank=2, of=3)
    assert training.read_line() == "trains"
    assert [rank.read_line() for rank in waiting] == ["waits", "waits"]
    assert member.snapshots == []
    training.process.kill()
    assert [rank.finish() for rank in waiting] == [(0, "saved\n", "")] * 2
    assert member.snapshots == [1]


def test_a_rank_that_is_killed_while_it_waits_does_not_keep_the_others_from_meeting(member, start_rank, join_rank):
    late = join_rank(2, of=3)
    killed, waiting = start_rank(WAITS, rank=0, of=3), start_rank(WAITS, rank=1, of=3)
    assert [rank.read_line() for rank in (killed, waiting)] == ["waits", "waits"]
    killed.process.kill()
    killed.process.wait()
    with late.train_step():
        late.upload_checkpoint()
    assert waiting.finish() == (0, "saved\n", "")
    assert member.snapshots == [1]


def test_a_data_loaders_process_does_not_stand_in_for_its_killed_rank(member, start_rank, join_rank):
    waiting = join_rank(0, of=2)
    script = (
        "import os, signal\npf.init()\nchild = os.fork()\n"
        "if child == 0:\n    signal.pause()\nprint(child, flush=True)\nsignal.pause()\n"
    )
    rank = start_rank(script, rank=1, of=2)
    child = int(rank.read_line())
    try:
        rank.process.kill()
        with waiting.train_step():
            waiting.upload_checkpoint()
        assert member.snapshots == [1]
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_rank_that_is_beyond_the_step_is_not_waited_for(member, join_rank):
    behind, ahead = join_rank(0, of=2), join_rank(1, of=2)
    for _ in range(2):
        with ahead.train_step():
            pass
    with behind.train_step():
        behind.upload_checkpoint()
    assert member.snapshots == [1]
    note = (
        "upload_checkpoint() at step 1 was not called on rank 1; call it on all ranks. The checkpoint holds the files "
        "as they were."
    )
    assert member.notes == [note]
    with ahead.train_step(), behind.train_step():
        behind.upload_checkpoint()
    assert (member.snapshots, member.notes) == ([1, 2], [note])


def test_a_second_session_of_a_process_does_not_wait_for_the_first(member, join_rank):
    session = join_rank(0)
    session.init()
    with session.train_step():
        session.upload_checkpoint()
    assert member.snapshots == [1]


def test_an_announced_step_reaches_every_rank_also_a_later_one(member, join_rank, wait_until):
    early = join_rank(0)
    with early.train_step():
        early.upload_checkpoint()
    member.server.announce(2)
    late = join_rank(1)
    for session, num_steps in ((early, 1), (late, 2)):
        for _ in range(num_steps):
            with session.train_step():
                pass
        wait_until(session.is_emergency_save)
        with session.train_step():
            assert session.is_emergency_save() is False
    member.server.announce(-1)
    wait_until(lambda: early.is_emergency_save() and late.is_emergency_save())


@pytest.fixture
def mortal_member(tmp_path):
    """A session server in a process of its own; its standard input keeps it alive."""
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from periflow_ray.runtime.command_jobs.session_server import SessionServer\n"
        "server = SessionServer(Path(sys.argv[1]), print, print)\nserver.start()\n"
        "print('listens', flush=True)\nsys.stdin.read()\n"
    )
    path = tmp_path / "mortal.sock"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "listens\n"
    yield path, process
    process.kill()
    process.communicate()


TRAIN_ON = """
for _ in range(1000):
    with pf.train_step():
        pf.metric({"loss": 1.0})
        pf.is_emergency_save()
pf.upload_checkpoint()
pf.upload_checkpoint()
"""


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_member_dies_the_training_goes_on_and_says_so_once(start_rank, mortal_member, signal_number):
    path, process = mortal_member
    rank = start_rank("pf.init()\nprint('trains', flush=True)\nsys.stdin.readline()" + TRAIN_ON, socket_path=path)
    assert rank.read_line() == "trains"
    process.send_signal(signal_number)
    process.wait()
    rank.go()
    exit_code, output, errors = rank.finish()
    assert (exit_code, output) == (0, "")
    (line,) = errors.splitlines()
    reason = line.removeprefix("periflow-ray: ").removesuffix(f". {UNTRACKED}")
    assert reason in (
        "the node agent is gone",
        "lost the node agent (Broken pipe)",
        "lost the node agent (Connection reset by peer)",
    )


def test_when_the_member_dies_a_rank_that_waits_for_the_others_is_released(start_rank, mortal_member):
    path, process = mortal_member
    training = start_rank(TRAINS, rank=0, of=2, socket_path=path)
    assert training.read_line() == "trains"
    waiting = start_rank(WAITS, rank=1, of=2, socket_path=path)
    assert waiting.read_line() == "waits"
    process.kill()
    exit_code, output, errors = waiting.finish()
    assert (exit_code, output) == (0, "saved\n")
    assert errors.count(UNTRACKED) == 1


def test_without_a_member_the_training_runs_untracked_and_says_so_once(start_rank, tmp_path):
    rank = start_rank("pf.init()" + TRAIN_ON, socket_path=tmp_path / "nobody.sock")
    assert rank.finish() == (
        0,
        "",
        f"periflow-ray: cannot reach the node agent at {tmp_path}/nobody.sock (No such file or directory). "
        f"{UNTRACKED}\n",
    )


def test_a_script_that_imports_the_sdk_and_forgets_init_leaves_a_mark(start_rank, tmp_path):
    rank = start_rank("print('trains without it')")
    assert rank.finish() == (0, "trains without it\n", "")
    assert (tmp_path / f"imported-{rank.process.pid}").exists()


def test_closing_ends_the_receivers_thread(member, join_rank, wait_until):
    session = join_rank(0)
    assert any(thread.name == "periflow-receiver" for thread in threading.enumerate())
    session.use_channel_factory(None)
    wait_until(lambda: not any(thread.name == "periflow-receiver" for thread in threading.enumerate()))


@pytest.mark.parametrize(
    ("line", "num_warnings"),
    [
        (b"not JSON\n", 0),
        (b"[1, 2]\n", 0),
        (b"[" * 100_000 + b"\n", 0),
        (b'{"kind": "announced", "step": "soon"}\n', 1),
        (b'{"no": "kind"}\n', 1),
    ],
    ids=["text", "list", "deep", "step", "kind"],
)
def test_a_message_that_makes_no_sense_does_not_end_the_receiver(tmp_path, caplog, line, num_warnings):
    announced: list[int] = []
    with socket.socket(socket.AF_UNIX) as listener, caplog.at_level(logging.INFO):
        listener.bind(str(tmp_path / "member.sock"))
        listener.listen()
        channel = SocketChannel(str(tmp_path / "member.sock"))
        channel.open(Hello(0, 0, 1, None, 1), lambda step: announced.append(step) is None, lambda: 5)
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as messages:
            assert json.loads(messages.readline())["kind"] == "hello"
            connection.sendall(2 * line + b'{"kind": "announced", "step": 7}\n{"kind": "report"}\n')
            assert json.loads(messages.readline()) == {"kind": "step", "step": 5}
        channel.close()
    assert announced == [7]
    told = [record for record in caplog.records if "a message of the node agent" in record.getMessage()]
    assert len(told) == num_warnings


def test_a_script_whose_sdk_speaks_another_version_is_told_so(member, start_rank, monkeypatch):
    monkeypatch.setenv("PERIFLOW_SESSION_VERSION", "2")
    exit_code, _, errors = start_rank("pf.init(3)\n").finish()
    assert exit_code == 1
    assert errors.splitlines()[-1] == (
        "periflow_ray.errors.PeriFlowError: the periflow-ray that this script imports speaks version 1 with the job's "
        "node, and the one that runs the job version 2: steps and checkpoints would not be recorded. Let the script "
        "import the same periflow-ray that is installed on the cluster."
    )
    assert not member.server.has_had_session


def test_a_script_of_the_same_version_is_served(member, start_rank, monkeypatch):
    monkeypatch.setenv("PERIFLOW_SESSION_VERSION", str(wire.PROTOCOL_VERSION))
    assert start_rank("pf.init(3)\n").finish() == (0, "", "")
    member.server.close()
    assert (member.server.has_had_session, member.notes) == (True, [])


def test_metrics_beyond_one_message_go_in_several_and_one_that_is_too_large_is_left_out_with_a_word(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 1000)
    records = [MetricRecord(step, 1.0, {"text": "x" * size}) for step, size in ((1, 400), (2, 400), (3, 2000), (4, 9))]
    with socket.socket(socket.AF_UNIX) as listener, caplog.at_level(logging.WARNING):
        listener.bind(str(tmp_path / "member.sock"))
        listener.listen()
        channel = SocketChannel(str(tmp_path / "member.sock"))
        channel.open(Hello(0, 0, 1, None, 1), lambda step: True, lambda: 5)
        connection, _ = listener.accept()
        channel.send(5, records, -1)
        channel.close()
        with connection:
            messages = list(wire.read_messages(connection, is_strict=True))
    metrics = [metric for message in messages if message["kind"] == "records" for metric in message["metrics"]]
    assert [step for step, _, _ in metrics] == [1, 2, 4]
    assert {message["step"] for message in messages if message["kind"] == "records"} == {5}
    assert [record.getMessage().partition(" are larger")[0] for record in caplog.records] == [
        "periflow-ray: the metrics of one pf.metric() call at step 5"
    ]
