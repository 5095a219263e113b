"""The member's end of the session, spoken to in plain messages over its socket.

Long because every message that may come, right or wrong, has its case.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from periflow_ray.jobs.metrics import Metric
from periflow_ray.runtime.command_jobs import session_server
from periflow_ray.runtime.command_jobs.session_server import Records, SessionServer
from periflow_ray.sdk import wire


class Rank:
    """A connected rank."""

    def __init__(self, socket_path: Path) -> None:
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connection.settimeout(30)
        self.connection.connect(str(socket_path))
        self.messages = wire.read_messages(self.connection)

    def say(self, kind: str, **fields: Any) -> None:
        self.connection.sendall(wire.encode(kind, **fields))

    def greet(
        self,
        rank: int,
        of: int | None = None,
        total_train_steps: int | None = None,
        version: int | None = 1,
        pid: int | None = None,
        is_guess: bool = False,
    ) -> None:
        self.say(
            "hello",
            version=version,
            rank=rank,
            local_rank=rank,
            local_world_size=of,
            total_train_steps=total_train_steps,
            pid=pid or rank + 1000,
            is_guess=is_guess,
        )

    def save(self, step: int, replace_waiting: bool = False) -> None:
        self.say("checkpoint", step=step, replace_waiting=replace_waiting)

    def hear(self) -> dict[str, Any] | None:
        """The next message; None when the server has hung up."""
        return next(self.messages, None)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def snapshots() -> list[int]:
    return []


@pytest.fixture
def server(tmp_path: Path, snapshots: list[int], notes: list[str]) -> Iterator[SessionServer]:
    running = SessionServer(tmp_path / "session", lambda step, _: snapshots.append(step), notes.append)
    running.start()
    yield running
    running.close()


@pytest.fixture
def connect(server: SessionServer, tmp_path: Path) -> Iterator[Callable[[], Rank]]:
    ranks: list[Rank] = []

    def connect() -> Rank:
        ranks.append(Rank(tmp_path / "session"))
        return ranks[-1]

    yield connect
    for rank in ranks:
        rank.connection.close()


SAVED = {"kind": "checkpointed", "error": None}


def test_what_ranks_send_is_taken_once(server, connect):
    assert server.has_had_session is False
    assert server.take_records() == Records({}, None, (), is_pausing=True)
    rank = connect()
    rank.greet(3, total_train_steps=40)
    rank.say("records", step=2, metrics=[[1, 10.5, {"loss": 0.5}], [2, 11.5, {"loss": 0.25}]])
    rank.say("bye")
    rank.connection.close()
    server.close()
    metrics = (Metric(1, 3, 3, 10.5, {"loss": 0.5}), Metric(2, 3, 3, 11.5, {"loss": 0.25}))
    assert server.take_records() == Records({3: 2}, 40, metrics, is_pausing=True)
    # The step stays, even after the rank has gone.
    assert server.take_records() == Records({3: 2}, 40, (), is_pausing=True)
    assert server.has_had_session is True


def test_closing_takes_in_what_ranks_sent_before_anybody_listened_to_them(server, connect):
    for number in range(20):
        rank = connect()
        rank.greet(number)
        rank.say("records", step=1, metrics=[[1, 1.0, {"x" * 1000: number}]] * 30)
        rank.connection.close()
    server.close()
    records = server.take_records()
    assert records.steps == dict.fromkeys(range(20), 1)
    assert len(records.metrics) == 600


def test_a_snapshot_is_taken_when_all_ranks_of_the_node_wait(server, connect, snapshots):
    first, second = connect(), connect()
    first.greet(0, of=2)
    first.save(5)
    second.greet(1, of=2)
    second.save(5)
    assert (first.hear(), second.hear(), snapshots) == (SAVED, SAVED, [5])
    for rank in (second, first):
        rank.save(10)
    assert (first.hear(), second.hear(), snapshots) == (SAVED, SAVED, [5, 10])


def test_a_node_pauses_while_every_rank_saves_or_is_through_with_its_steps(tmp_path, notes, wait_until):
    is_copied = threading.Event()
    server = SessionServer(tmp_path / "session", lambda step, _: is_copied.wait(30), notes.append)
    server.start()

    def is_pausing() -> bool:
        return server.take_records().is_pausing

    assert is_pausing()
    first, second = Rank(tmp_path / "session"), Rank(tmp_path / "session")
    for number, rank in enumerate((first, second)):
        rank.greet(number, of=2, total_train_steps=40)
    wait_until(lambda: not is_pausing())
    first.save(5)
    second.say("records", step=4, metrics=[])
    wait_until(lambda: server.take_records().steps == {1: 4})
    assert not is_pausing()
    second.save(5)
    wait_until(is_pausing)
    is_copied.set()
    assert (first.hear(), second.hear(), is_pausing()) == (SAVED, SAVED, False)
    for rank in (first, second):
        rank.say("records", step=40, metrics=[])
    wait_until(is_pausing)
    for rank in (first, second):
        rank.connection.close()
    server.close()


def test_a_save_may_replace_a_waiting_one_if_any_rank_says_so(tmp_path, notes):
    saves: list[tuple[int, bool]] = []
    server = SessionServer(tmp_path / "session", lambda *save: saves.append(save), notes.append)
    server.start()
    first, second = Rank(tmp_path / "session"), Rank(tmp_path / "session")
    for number, rank in enumerate((first, second)):
        rank.greet(number, of=2)
    for step, replace_waiting in ((5, False), (6, True)):
        first.save(step, replace_waiting)
        second.save(step)
        assert (first.hear(), second.hear()) == (SAVED, SAVED)
    assert saves == [(5, False), (6, True)]
    for rank in (first, second):
        rank.connection.close()
    server.close()


def test_a_rank_that_waits_at_a_later_step_is_met_at_that_step(server, connect, snapshots):
    first, second = connect(), connect()
    for number, rank in enumerate((first, second)):
        rank.greet(number, of=2)
    first.save(5)
    second.save(6)
    assert (first.hear(), second.hear(), snapshots) == (SAVED, SAVED, [6])


def test_a_rank_that_never_connects_is_waited_for_only_so_long(server, connect, snapshots, monkeypatch):
    monkeypatch.setattr(session_server, "CONNECT_WINDOW_S", 0.0)
    rank = connect()
    rank.greet(0, of=2)
    rank.save(5)
    assert (rank.hear(), snapshots) == (SAVED, [5])


def test_a_long_wait_for_a_rank_is_reported_once(server, connect, notes, snapshots, monkeypatch, wait_until):
    waiting, training = connect(), connect()
    for number, rank in enumerate((waiting, training)):
        rank.greet(number, of=2)
        rank.save(0)
    assert (waiting.hear(), training.hear()) == (SAVED, SAVED)
    monkeypatch.setattr(session_server, "SLOW_MEETING_S", 0.0)
    waiting.save(5)
    wait_until(lambda: bool(notes))
    for step in (1, 2, 3):
        training.say("records", step=step, metrics=[])
    training.save(5)
    assert (waiting.hear(), training.hear(), snapshots) == (SAVED, SAVED, [0, 5])
    assert notes == ["rank 0 has waited 0 s in upload_checkpoint() at step 5 for rank 1. Every rank must call it."]


def test_an_error_of_the_snapshot_goes_to_the_ranks(tmp_path, notes):
    def fail(step: int, replace_waiting: bool) -> None:
        raise OSError(28, "No space left on device")

    server = SessionServer(tmp_path / "session", fail, notes.append)
    server.start()
    rank = Rank(tmp_path / "session")
    rank.greet(0)
    rank.save(5)
    assert rank.hear() == {"kind": "checkpointed", "error": "[Errno 28] No space left on device"}
    rank.connection.close()
    server.close()


def test_an_announced_step_reaches_all_ranks_even_later_ones(server, connect):
    early = connect()
    early.greet(0)
    early.save(1)
    assert early.hear() == SAVED
    server.announce(30)
    assert early.hear() == {"kind": "announced", "step": 30}
    late = connect()
    late.greet(1)
    assert late.hear() == {"kind": "announced", "step": 30}


@pytest.mark.parametrize(
    "stray",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\n",
        b'{"no": "kind"}\n',
        b'{"kind": "hello"}\n',
        b'{"kind": "checkpoint"}\n',
    ],
)
def test_a_stray_program_is_cut_off_and_the_ranks_go_on(server, connect, notes, snapshots, stray):
    rank, other = connect(), connect()
    rank.greet(0)
    other.connection.sendall(stray)
    assert other.hear() is None
    assert len(notes) == 1
    assert notes[0].startswith("a process sent something that is not a session message (")
    assert notes[0].endswith("); it was cut off")
    rank.save(1)
    assert (rank.hear(), snapshots) == (SAVED, [1])


RECORDS = {"kind": "records", "step": 1, "metrics": []}
SAVE = {"kind": "checkpoint", "step": 1, "replace_waiting": False}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({**RECORDS, "step": "3"}, "its 'step' is '3'"),
        ({**RECORDS, "step": float("nan")}, "its 'step' is 'nan'"),
        ({**RECORDS, "step": -1}, "its 'step' is '-1'"),
        ({**RECORDS, "step": True}, "its 'step' is 'True'"),
        ({**RECORDS, "step": [[[]]]}, "its 'step' is a list"),
        ({**RECORDS, "step": 10**9}, "step 1000000000 so soon after step 0"),
        ({**RECORDS, "metrics": {}}, "its 'metrics' is a dict"),
        ({**RECORDS, "asked_step": "3"}, "its 'asked_step' is '3'"),
        ({**RECORDS, "metrics": [[1, 1.0]]}, "a metric is a list"),
        ({**RECORDS, "metrics": [["1", 1.0, {}]]}, "a metric's step is '1'"),
        ({**RECORDS, "metrics": [[1, float("inf"), {}]]}, "a metric's time is 'inf'"),
        ({**RECORDS, "metrics": [[1, 1.0, {"loss": [0.5]}]]}, "a metric's values are a dict"),
        ({"kind": "step", "step": None}, "its 'step' is 'None'"),
        ({"kind": "late", "step": "now"}, "its 'step' is 'now'"),
        ({**SAVE, "step": 10**9}, "step 1000000000 so soon after step 0"),
        ({**SAVE, "step": 2**63}, "its 'step' is '9223372036854775808'"),
        ({**SAVE, "replace_waiting": "no"}, "its 'replace_waiting' is 'no'"),
        ({"kind": "checkpoint", "step": 1}, "it has no 'replace_waiting'"),
        ({"kind": ["hello"]}, "its kind is a list"),
    ],
)
def test_a_message_that_cannot_be_right_ends_its_own_connection_only(
    server, connect, notes, snapshots, message, reason
):
    honest, wrong = connect(), connect()
    honest.greet(0, of=2)
    wrong.greet(1, of=2)
    honest.save(1)
    wrong.save(1)
    assert (honest.hear(), wrong.hear()) == (SAVED, SAVED)
    wrong.connection.sendall(json.dumps(message).encode() + b"\n")
    assert wrong.hear() is None
    assert notes == [
        f"rank 1 (process 1001) sent something that is not a session message ({reason}); it was cut off: its steps and "
        "checkpoints are not recorded any more"
    ]
    honest.say("records", step=2, metrics=[])
    honest.save(2)
    assert (honest.hear(), snapshots) == (SAVED, [1, 2])
    assert server.take_records().steps[0] == 2


def test_a_message_without_an_end_is_not_taken_in_and_the_others_go_on(server, connect, notes, snapshots, monkeypatch):
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 1 << 20)
    honest, wrong = connect(), connect()
    honest.greet(0)
    with contextlib.suppress(ConnectionError):
        wrong.connection.sendall(b"[" * (4 << 20))
    assert wrong.hear() is None
    assert notes == [
        "a process sent something that is not a session message (a message of more than 1 MiB); it was cut off"
    ]
    honest.save(1)
    assert (honest.hear(), snapshots) == (SAVED, [1])


def test_ranks_that_count_on_from_a_large_step_are_believed(tmp_path, notes):
    server = SessionServer(tmp_path / "session", lambda step, _: None, notes.append, resumed_step=10**12)
    server.start()
    rank = Rank(tmp_path / "session")
    rank.greet(0)
    rank.say("records", step=10**12, metrics=[])
    rank.save(10**12 + 1000)
    assert rank.hear() == SAVED
    rank.connection.close()
    server.close()
    assert notes == []


def test_a_second_process_of_a_rank_is_refused_and_the_first_one_saves(server, connect, notes, snapshots, monkeypatch):
    monkeypatch.setattr(session_server, "SUCCESSION_TIMEOUT_S", 0.0)
    first, second = connect(), connect()
    first.greet(0, total_train_steps=40)
    first.save(1)
    assert first.hear() == SAVED
    second.greet(0, total_train_steps=10, pid=77)
    assert second.hear() is None
    assert len(notes) == 1
    assert notes[0].startswith("process 77 says that it is rank 0, and so does process 1000: ")
    first.save(2)
    assert (first.hear(), snapshots) == (SAVED, [1, 2])
    assert (server.take_records().total_train_steps, server.pids) == (40, {0: 1000})


def test_a_rank_that_is_started_again_takes_the_place_of_the_one_that_ended(
    server, connect, notes, snapshots, wait_until
):
    former, neighbour, successor = connect(), connect(), connect()
    former.greet(0, of=2)
    neighbour.greet(1, of=2)
    former.save(1)
    neighbour.save(1)
    assert (former.hear(), neighbour.hear()) == (SAVED, SAVED)
    # It comes before the end of the former one is noticed.
    successor.greet(0, of=2, pid=77)
    former.connection.close()
    wait_until(lambda: server.pids == {0: 77, 1: 1001})
    successor.save(2)
    neighbour.save(2)
    assert (successor.hear(), neighbour.hear(), snapshots, notes) == (SAVED, SAVED, [1, 2], [])


def test_a_process_may_open_another_session(server, connect, notes, snapshots):
    first, second = connect(), connect()
    first.greet(0, total_train_steps=40)
    first.save(1)
    assert first.hear() == SAVED
    second.greet(0, total_train_steps=60)
    second.save(2)
    assert (second.hear(), snapshots, notes) == (SAVED, [1, 2], [])
    assert server.take_records().total_train_steps == 60


def test_the_total_of_the_lowest_rank_counts(server, connect):
    for number, total in ((1, 20), (0, 40), (2, 60)):
        rank = connect()
        rank.greet(number, total_train_steps=total)
        rank.save(0)
        assert rank.hear() == SAVED
        rank.connection.close()
    assert server.take_records().total_train_steps == 40


def test_a_note_that_cannot_be_written_ends_no_session(tmp_path):
    def fail(text: str) -> None:
        raise OSError("the storage is away")

    server = SessionServer(tmp_path / "session", lambda step, _: None, fail)
    server.start()
    stray, rank = Rank(tmp_path / "session"), Rank(tmp_path / "session")
    stray.connection.sendall(b"GET /\n")
    assert stray.hear() is None
    rank.greet(0)
    rank.save(1)
    assert rank.hear() == SAVED
    rank.connection.close()
    server.close()


@pytest.mark.parametrize("version", [2, 0, None])
def test_a_rank_that_speaks_another_version_is_cut_off_and_the_user_is_told(server, connect, notes, version):
    rank = connect()
    rank.greet(3, version=version)
    assert rank.hear() is None
    assert notes == [
        f"rank 3 imports a periflow-ray that speaks version {version} with the job's node, which speaks version 1: its "
        "steps and checkpoints are not recorded. Let the script import the same periflow-ray that is installed on the "
        "cluster."
    ]
    assert server.has_had_session is False


def test_messages_may_arrive_in_pieces_and_a_cut_one_is_dropped(server, connect):
    rank = connect()
    rank.greet(0)
    message = wire.encode("records", step=7, metrics=[[7, 1.0, {"손실": 0.5}]])
    for byte in message:
        rank.connection.sendall(bytes([byte]))
    rank.connection.sendall(wire.encode("records", step=8, metrics=[])[:-5])
    rank.connection.close()
    server.close()
    metrics = (Metric(7, 0, 0, 1.0, {"손실": 0.5}),)
    assert server.take_records() == Records({0: 7}, None, metrics, is_pausing=True)


def test_closing_hangs_up_and_lets_nobody_in(server, connect, monkeypatch):
    # This rank does not end by itself.
    monkeypatch.setattr(session_server, "FINISH_TIMEOUT_S", 0.05)
    rank = connect()
    rank.greet(0)
    rank.save(1)
    assert rank.hear() == SAVED
    server.close()
    assert rank.hear() is None
    with pytest.raises(ConnectionRefusedError):
        connect()
    server.close()


def test_processes_that_only_guess_who_they_are_are_told_when_both_train(server, connect, notes, wait_until):
    first, second, idle = connect(), connect(), connect()
    for rank, pid in ((first, 11), (second, 12), (idle, 13)):
        rank.say(
            "hello", version=1, rank=0, local_rank=0, local_world_size=None, total_train_steps=9, pid=pid, is_guess=True
        )
        rank.say("records", step=0, metrics=[])
    first.say("records", step=1, metrics=[])
    wait_until(lambda: server.take_records().steps == {0: 1})
    second.say("records", step=1, metrics=[[1, 1.0, {"loss": 2.0}]])
    assert second.hear() is None
    idle.say("bye", has_failed=False)
    first.say("bye", has_failed=False)
    for rank in (first, idle):
        rank.connection.close()
    server.close()
    records = server.take_records()
    assert (records.steps, records.metrics) == ({0: 1}, ())
    assert len(notes) == 1
    assert re.match(r"process 1[12] says that it is rank 0, and so does process 1[12]: ", notes[0])


def test_a_guess_gives_way_to_a_process_that_knows(server, connect, notes):
    parent, child = connect(), connect()
    parent.say(
        "hello", version=1, rank=0, local_rank=0, local_world_size=None, total_train_steps=9, pid=1, is_guess=True
    )
    parent.say("records", step=0, metrics=[])
    child.greet(0, pid=2)
    child.say("records", step=3, metrics=[])
    child.save(3)
    # It does not wait for one that has no part in the training.
    assert child.hear() == SAVED
    assert server.pids == {0: 2}
    assert notes == []
