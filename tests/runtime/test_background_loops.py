"""Background loops get an unexpected error at their first, second and last time, and do their work all the same."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from injected_errors import INTERVAL_S, TIMES, Time, Turns, WaitUntil

from periflow_ray.errors import ClusterError
from periflow_ray.loops import BackgroundLoop, Faults
from periflow_ray.processes import Command
from periflow_ray.runtime.monitor.repetition import Repetition
from periflow_ray.sdk import session as session_module
from periflow_ray.sdk.session import Session
from periflow_ray.submit import local_supervisor
from periflow_ray.submit.local_cluster import LocalCluster, LocalClusterDir


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, RecursionError])
@pytest.mark.parametrize("failing", TIMES)
def test_a_background_loop_goes_on_and_tells_the_user_once(
    failing: Time, error: type[BaseException], problems: list[str], wait_until: WaitUntil
) -> None:
    turns, traces = Turns(failing, error), []
    faults = Faults("the loop", problems.append, traces.append)
    with BackgroundLoop("test-loop", turns, INTERVAL_S, acts_at_close=True, faults=faults) as loop:
        wait_until(lambda: turns.num >= 4)
        turns.is_last = True
    assert loop.close() is True
    assert turns.num_raised == 1
    assert problems == [f"the loop failed unexpectedly ({error.__name__}: injected) and goes on."]
    assert len(traces) == 1
    assert f"{error.__name__}: injected" in traces[0]


def test_a_loop_that_always_fails_writes_one_trace_and_ends_all_the_same(
    problems: list[str], capfd: pytest.CaptureFixture[str], wait_until: WaitUntil
) -> None:
    num = 0

    def fail() -> None:
        nonlocal num
        num += 1
        raise RuntimeError("always")

    faults = Faults("the loop", problems.append)
    with BackgroundLoop("test-loop", fail, INTERVAL_S, faults=faults):
        wait_until(lambda: num >= 5)
    assert len(problems) == 1
    assert capfd.readouterr().err.count("RuntimeError: always") == 1


def test_a_loop_in_its_action_is_not_waited_for_without_end() -> None:
    entered, released = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        released.wait()

    loop = BackgroundLoop("test-loop", block, None)
    loop.start()
    loop.wake()
    entered.wait()
    assert loop.close(0.0) is False
    released.set()
    assert loop.close() is True


def test_a_problem_that_cannot_be_told_and_an_error_that_cannot_be_shown_end_nothing() -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    def refuse(text: str) -> None:
        raise OSError("disk full")

    faults = Faults("the loop", refuse, refuse)
    faults.take(Unspeakable())
    faults.take(RuntimeError("two\nlines \x1b[31m"))
    assert faults.num_taken == 2


def test_repeated_actions_of_the_monitor(turns: Turns, problems: list[str]) -> None:
    others = 0

    async def act() -> None:
        turns()

    async def act_beside() -> None:
        nonlocal others
        others += 1

    async def main() -> None:
        repetition = Repetition(problems.append)
        repetition.begin(act, INTERVAL_S, "the action")
        repetition.begin(act_beside, INTERVAL_S)
        while turns.num < 4 or others < 4:
            await asyncio.sleep(INTERVAL_S)
        turns.is_last = True
        await repetition.close()

    asyncio.run(asyncio.wait_for(main(), 60))
    assert turns.num_raised == 1
    assert problems == ["the action failed unexpectedly (RuntimeError: injected) and goes on."]


def test_a_repeated_action_that_hangs_does_not_keep_the_monitor_from_closing() -> None:
    async def main() -> None:
        repetition = Repetition()
        entered = asyncio.Event()

        async def hang() -> None:
            entered.set()
            await asyncio.Event().wait()

        repetition.begin(hang, 0.0)
        await entered.wait()
        await repetition.close(0.01)

    asyncio.run(asyncio.wait_for(main(), 60))


class TurningChannel:
    """A session's channel that takes a turn each time it is sent something."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.steps: list[int] = []
        self.saved: list[int] = []
        self.is_closed = False

    def open(self, hello: Any, on_announced_step: Any, read_step: Any) -> None:
        pass

    def send(self, step: int, records: Sequence[Any], asked_step: int) -> None:
        self.turns()
        self.steps.append(step)

    def save_checkpoint(self, step: int, replace_waiting: bool) -> None:
        self.saved.append(step)

    def close(self, has_failed: bool = False) -> None:
        self.is_closed = True


def test_the_sender_of_a_session(
    turns: Turns, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wait_until: WaitUntil
) -> None:
    monkeypatch.setattr(session_module, "SEND_INTERVAL_S", INTERVAL_S)
    channel = TurningChannel(turns)
    session = Session()
    session.use_channel_factory(lambda local_log_name: channel)
    with caplog.at_level(logging.INFO):
        session.init()
        wait_until(lambda: turns.num >= 3)
        with session.train_step():
            session.metric({"loss": 1.0})
            session.upload_checkpoint()
        wait_until(lambda: channel.steps[-1:] == [1])
        turns.is_last = True
        session.use_channel_factory(None)
    assert turns.num_raised == 1
    assert (channel.saved, channel.is_closed) == ([1], True)
    assert [record.getMessage() for record in caplog.records] == [
        "periflow-ray: sending progress and metrics failed unexpectedly (RuntimeError: injected) and goes on. Training "
        "goes on; some metrics may be missing."
    ]


def test_the_embedded_cluster_s_supervisor(
    turns: Turns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Longer than this process may stand still between two turns.
    monkeypatch.setenv(local_supervisor.IDLE_VARIABLE, "1")
    monkeypatch.setattr(local_supervisor, "IDLE_POLL_S", INTERVAL_S)
    (tmp_path / "cluster").mkdir()
    directory = LocalClusterDir(tmp_path / "cluster")
    directory.touch()
    directory.write(LocalCluster("http://127.0.0.1:9", local_supervisor.os.getpid()))

    class Cluster:
        def has_running_jobs(self) -> bool:
            is_running = turns.num < 4
            turns.is_last = not is_running
            turns()
            if turns.num == 3:
                raise ClusterError("does not answer")
            return is_running

    cluster: Any = Cluster()
    local_supervisor._wait_until_idle(cluster, directory, threading.Event())
    assert turns.num_raised == 1
    assert turns.num > 4
    assert directory.read() is None
    assert capfd.readouterr().err.count("RuntimeError: injected") == 1


def test_the_reader_of_a_command_s_output(turns: Turns, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []

    def take(line: str) -> None:
        turns.is_last = line == "4"
        turns()
        lines.append(line)

    command = Command(["seq", "4"], env={"PATH": "/usr/bin:/bin"}, working_dir=tmp_path, grace_s=1.0, on_line=take)
    assert command.start().wait().is_success
    lost = {"first": "1", "second": "2", "last": "4"}[turns.failing]
    assert lines == [line for line in "1234" if line != lost]
    assert capfd.readouterr().err.count("RuntimeError: injected") == 1
