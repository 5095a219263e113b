"""Whichever way a command ends, none of its processes outlives it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from support.powerless_keeper import use_powerless_keeper

from periflow_ray.processes import CommandResult, Leftover, end_leftovers, keeper

# Three generations; the youngest two hide in sessions of their own, as torchrun's workers do.
HIDDEN_TREE = "setsid bash -c 'setsid sleep 1000 & echo $! > youngest; sleep 1000' & "
IGNORES_TERM = "trap '' TERM; "


def read_pid(path: Path) -> int:
    return int(path.read_text())


def has_text(path: Path) -> bool:
    return path.exists() and path.read_text().endswith("\n")


def test_hidden_grandchildren_end_with_the_command(start, marked, tmp_path):
    command, _ = start(HIDDEN_TREE + "until [ -s youngest ]; do :; done; exit 5")
    assert command.wait().exit_code == 5
    assert marked.find() == []
    # Not even as a zombie.
    assert not Path(f"/proc/{read_pid(tmp_path / 'youngest')}").exists()


def test_hidden_grandchildren_end_with_stop(start, marked, tmp_path, wait_until):
    command, _ = start(HIDDEN_TREE + "wait")
    wait_until(lambda: has_text(tmp_path / "youngest"))
    command.stop()
    result = command.wait()
    assert (result.exit_code, result.signal) == (None, signal.SIGTERM)
    assert marked.find() == []


def test_a_command_may_use_the_grace_time_to_save_its_work(start, marked, tmp_path, wait_until):
    command, lines = start(
        "trap 'echo saving; echo saved; exit 7' TERM; echo ready > ready; while :; do sleep 0.01; done"
    )
    wait_until(lambda: has_text(tmp_path / "ready"))
    command.stop()
    assert command.wait().exit_code == 7
    assert lines[-2:] == ["saving", "saved"]


def test_processes_that_ignore_sigterm_are_killed_after_the_grace_time(start, marked, tmp_path, wait_until):
    command, _ = start(
        IGNORES_TERM + "bash -c \"trap '' TERM; echo ready > ready; while :; do sleep 0.01; done\"; exit 0", grace_s=0.2
    )
    wait_until(lambda: has_text(tmp_path / "ready"))
    command.stop()
    assert command.wait().signal == signal.SIGKILL
    assert marked.find() == []


def test_grandchildren_that_ignore_sigterm_end_with_the_command(start, marked, tmp_path):
    command, _ = start(
        "setsid bash -c \"trap '' TERM; echo ready > ready; while :; do sleep 0.01; done\" & "
        "until [ -s ready ]; do :; done; exit 0",
        grace_s=0.2,
    )
    assert command.wait().is_success
    assert marked.find() == []


def test_a_stop_may_shorten_the_grace_time(start, marked, tmp_path, wait_until):
    # Its own grace time is longer than the tests' limit.
    command, _ = start(f"{IGNORES_TERM} echo ready > ready; while :; do sleep 0.01; done", grace_s=3600.0)
    wait_until(lambda: has_text(tmp_path / "ready"))
    command.stop(grace_s=0.1)
    assert command.wait().signal == signal.SIGKILL
    assert marked.find() == []


def test_stop_after_the_end_does_nothing(start):
    command, _ = start("exit 4")
    result = command.wait()
    command.stop()
    command.stop()
    assert result.exit_code == 4


def test_everything_ends_when_the_starter_is_killed(marked, tmp_path, wait_until):
    script = f"{HIDDEN_TREE} {IGNORES_TERM} wait"
    starter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys\n"
            "from pathlib import Path\n"
            "from periflow_ray.processes import Command\n"
            "Command(['bash', '-c', sys.argv[1]], env=os.environ, working_dir=Path(sys.argv[2]), grace_s=0.2,\n"
            "        on_line=print).start().wait()\n",
            script,
            str(tmp_path),
        ],
        env={**os.environ, marked.marker[0]: marked.marker[1]},
    )
    wait_until(lambda: has_text(tmp_path / "youngest"))
    assert len(marked.find()) >= 5
    starter.kill()
    starter.wait()
    wait_until(lambda: marked.find() == [])


def test_everything_ends_when_the_keeper_is_killed(start, marked, tmp_path, wait_until):
    command, _ = start(f"{HIDDEN_TREE} {IGNORES_TERM} wait")
    wait_until(lambda: has_text(tmp_path / "youngest"))
    os.kill(command.keeper_pid, signal.SIGKILL)
    assert command.wait() == CommandResult(exit_code=None, signal=None, peak_memory_bytes=0)
    wait_until(lambda: marked.find() == [])


def test_what_killed_starter_and_keeper_left_behind_is_found_by_its_mark(marked, tmp_path, wait_until):
    # A session of its own and nobody to keep it: an orphan, as after kill -9 of keeper and member together.
    subprocess.run(
        [
            "bash",
            "-c",
            "setsid bash -c 'setsid sleep 1000 & echo $! > youngest; sleep 1000' < /dev/null &> /dev/null &",
        ],
        env={**os.environ, marked.marker[0]: marked.marker[1]},
        cwd=tmp_path,
        check=True,
    )
    wait_until(lambda: has_text(tmp_path / "youngest"))
    assert read_pid(tmp_path / "youngest") in marked.find()
    assert end_leftovers(marked.marker) != []
    wait_until(lambda: marked.find() == [])
    assert end_leftovers(marked.marker) == []


def test_processes_without_the_mark_are_left_alone(marked):
    other = subprocess.Popen(["sleep", "1000"], env={marked.marker[0]: marked.marker[1] + "-other"})
    try:
        assert end_leftovers(marked.marker) == []
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_orphans_of_an_ended_shell_do_not_stay_as_zombies(start, marked, tmp_path, wait_until):
    command, _ = start("for i in $(seq 100); do (sleep 0.01 &) ; done; echo done > forked; exec sleep 1000")
    wait_until(lambda: has_text(tmp_path / "forked"))
    wait_until(lambda: find_children(command.keeper_pid) == ["S"])
    command.stop(grace_s=0.1)
    command.wait()


def test_what_cannot_be_ended_is_named_and_left(start, marked, tmp_path, wait_until, monkeypatch):
    use_powerless_keeper(tmp_path, monkeypatch)
    command, lines = start("echo said; echo ready > ready; sleep 1000 & sleep 1000 & exit 3", grace_s=0.1)
    result = command.wait()
    assert (result.exit_code, result.signal, lines) == (3, None, ["said"])
    pids = [int(text.split()[0]) for text in result.left]
    assert sorted(result.left) == sorted(f"{pid} (sleep 1000)" for pid in pids)
    assert sorted(pids) == sorted(marked.find())
    # Asked again, it says the same and waits for nothing.
    assert command.wait() is result
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: marked.find() == [])


def test_leftovers_that_cannot_be_ended_are_not_waited_for_without_end(marked, monkeypatch, wait_until):
    left = subprocess.Popen(["sleep", "1000"], env={marked.marker[0]: marked.marker[1]})
    wait_until(lambda: marked.find() == [left.pid])
    with monkeypatch.context() as powerless:
        powerless.setattr(keeper, "_send", lambda pid, number: None)
        powerless.setattr(keeper, "KILL_TIMEOUT_S", 0.1)
        assert end_leftovers(marked.marker) == [Leftover(f"{left.pid} (sleep 1000)", is_left=True)]
    assert end_leftovers(marked.marker) == [Leftover(f"{left.pid} (sleep 1000)", is_left=False)]
    left.wait()


def find_children(pid: int) -> list[str]:
    """The states of a process's children."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            state, parent = Path(f"/proc/{int(entry)}/stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid:
                found.append(state)
    return found
