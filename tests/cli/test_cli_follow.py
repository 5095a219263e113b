from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from rich.console import Console
from support.driver_stand_in import DriverStandIn
from support.sample_jobs import build_record

from periflow_ray.cli.follow import follow_job, raise_unless_success
from periflow_ray.cli.log_view import LogView
from periflow_ray.errors import JobFailedError, JobStoppedError, NotFoundError
from periflow_ray.jobs import JobProgress, JobState, write_progress, write_record, write_state
from periflow_ray.jobs.logs import LogWriter
from periflow_ray.jobs.requests import Request, StopRequest
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot

DEADLINE_S = 30.0
FOLLOW = [sys.executable, "-m", "periflow_ray.cli.main", "job", "log", "1", "-f"]


class ReactingFile(io.StringIO):
    """Standard error that lets the job go on once something was said: text -> what happens then."""

    def __init__(self, reactions: dict[str, Callable[[], None]]) -> None:
        super().__init__()
        self._reactions = reactions

    def write(self, text: str) -> int:
        num_written = super().write(text)
        for said in [said for said in self._reactions if said in self.getvalue()]:
            self._reactions.pop(said)()
        return num_written


@pytest.fixture
def running_root(root: StorageRoot) -> StorageRoot:
    """A storage root whose job 1 runs on two nodes and has written a line on each."""
    write_record(root, build_record(1))
    write_state(root, 1, running_state())
    write_lines(root, 0, "hello from 0", at_unix_ms=1000)
    write_lines(root, 1, "hello from 1", at_unix_ms=2000)
    return root


def running_state() -> JobState:
    return JobState("running", time.time(), heartbeat_unix_s=time.time(), attempt=1)


def write_lines(root: StorageRoot, node_rank: int, *lines: str, at_unix_ms: int | None = None) -> None:
    writer = LogWriter(root, 1, node_rank)
    for line in lines:
        writer.write(line, at_unix_ms)
    writer.flush()


def test_lines_are_printed_to_the_last_one_and_the_final_state_is_returned(running_root, capsys):
    final = JobState("success", 1.0, 2.0, 2.0, 1)

    def go_on() -> None:
        write_lines(running_root, 1, "step 5 of 10", at_unix_ms=3000)
        write_progress(running_root, 1, JobProgress(5, 10, 2.0, {"loss": 0.5}))

    def end() -> None:
        write_lines(running_root, 0, *(f"line {index}" for index in range(1000)), "the last line", at_unix_ms=4000)
        write_progress(running_root, 1, JobProgress(10, 10, 2.0, {"loss": 0.25}))
        write_state(running_root, 1, final)

    talk = ReactingFile({"running": go_on, "5/10": end})
    assert follow_job(running_root, 1, console=Console(file=talk)) == final
    assert capsys.readouterr().out.splitlines() == [
        "[node 0] hello from 0",
        "[node 1] hello from 1",
        "[node 1] step 5 of 10",
        *(f"[node 0] line {index}" for index in range(1000)),
        "[node 0] the last line",
    ]
    assert talk.getvalue().splitlines() == [
        "Job (1) running",
        "Job (1) 5/10 steps (50 %), 2 steps/s, ETA 2s, loss 0.5",
        "Job (1) 10/10 steps (100 %), 2 steps/s, loss 0.25",
    ]


def test_a_storage_root_that_is_away_for_a_while_does_not_end_it(running_root, capsys):
    path = running_root.local_path(job_key(1, "state.json"))

    def break_state() -> None:
        path.write_text("{")

    def mend_state() -> None:
        write_lines(running_root, 0, "written meanwhile")
        write_state(running_root, 1, JobState("stopped"))

    talk = ReactingFile({"running": break_state, "trying again": mend_state})
    assert follow_job(running_root, 1, console=Console(file=talk, width=200)) == JobState("stopped")
    assert capsys.readouterr().out.splitlines()[-1] == "[node 0] written meanwhile"
    assert "Job (1) cannot be read just now, trying again: 'jobs/1/state.json' in storage root" in talk.getvalue()


def test_only_what_the_view_selects_is_printed_and_only_so_many_of_the_lines_before(running_root, capsys):
    def end() -> None:
        write_lines(running_root, 0, "loss 1", "loss 2", "noise")
        write_state(running_root, 1, JobState("success"))

    write_lines(running_root, 0, "loss -1", "noise", "loss 0")
    follow_job(
        running_root,
        1,
        console=Console(file=ReactingFile({"running": end})),
        view=LogView(content="loss"),
        num_past_lines=1,
    )
    assert capsys.readouterr().out.splitlines() == ["loss 0", "loss 1", "loss 2"]


def test_on_a_terminal_the_progress_line_gives_way_to_log_lines(running_root, capsys):
    def end() -> None:
        write_lines(running_root, 0, "bye")
        write_state(running_root, 1, JobState("success"))

    write_progress(running_root, 1, JobProgress(5, 10, 2.0, {"loss": 0.5}))
    talk = ReactingFile({"5/10": end})
    follow_job(running_root, 1, console=Console(file=talk, force_terminal=True, width=100))
    progress = "██████████░░░░░░░░░░ 5/10 steps (50 %), 2 steps/s, ETA 2s, loss 0.5"
    assert talk.getvalue() == f"running {progress}\r\x1b[2Ksuccess {progress}\r\x1b[2K"


def test_a_job_that_is_deleted_meanwhile_is_an_error(running_root):
    talk = ReactingFile({"running": lambda: running_root.delete(job_key(1))})
    with pytest.raises(NotFoundError, match=r"^job 1 does not exist in storage root"):
        follow_job(running_root, 1, console=Console(file=talk))


def test_any_end_but_success_is_an_error_with_the_diagnosis(running_root):
    raise_unless_success(running_root, 1, JobState("success"))
    with pytest.raises(JobFailedError, match=r"^job 1 failed: exit code 3$"):
        raise_unless_success(running_root, 1, JobState("failed", message="exit code 3"))
    stopped = "Job (1) was stopped; it has no checkpoint.\nGo on with it: "
    with pytest.raises(JobStoppedError, match=re.escape(stopped)):
        raise_unless_success(running_root, 1, JobState("stopped", message="stopped: requested by the user"))


def test_a_stop_is_told_in_a_sentence_and_not_as_an_error(run_cli, running_root):
    write_state(running_root, 1, JobState("stopped", message="stopped: requested by the user"))
    result = run_cli("job", "log", "1", "--follow")
    assert result.exit_code == 1
    assert "Error" not in result.stderr
    assert "Job (1) was stopped; it has no checkpoint.\n" in result.stderr


def test_ctrl_c_without_a_terminal_leaves_the_job_running_and_says_how_to_stop_it(running_root):
    process = subprocess.Popen(
        FOLLOW, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "[node 0] hello from 0\n"
    assert process.stdout.readline() == "[node 1] hello from 1\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-2:] == [
        "Job (1) keeps running.",
        "Follow it again: periflow-ray job log 1 -f    Stop it: periflow-ray job stop 1",
    ]


def test_ctrl_c_on_a_terminal_asks_and_can_go_on_following(running_root):
    with Terminal(FOLLOW) as terminal:
        terminal.wait_for("running")
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("Stop job 1, leave it running, or go on following it (stop, leave, follow) [leave]: ")
        terminal.type("follow\n")
        write_lines(running_root, 0, "still here")
        terminal.wait_for("[node 0] still here")
        write_state(running_root, 1, JobState("success"))
        assert terminal.process.wait(DEADLINE_S) == 0


def test_ctrl_c_on_a_terminal_asks_and_can_leave_the_job_running(running_root):
    with Terminal(FOLLOW) as terminal:
        terminal.wait_for("running")
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("[leave]: ")
        terminal.type("\n")
        terminal.wait_for("Job (1) keeps running.")
        assert terminal.process.wait(DEADLINE_S) == 130


def test_ctrl_c_on_a_terminal_asks_and_can_stop_the_job_with_a_save(running_root):
    def stop(request: Request) -> None:
        write_lines(running_root, 0, "saved")
        write_state(running_root, 1, JobState("stopped"))

    with DriverStandIn(running_root, stop) as driver, Terminal(FOLLOW) as terminal:
        terminal.wait_for("running")
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("[leave]: ")
        terminal.type("stop\n")
        terminal.wait_for("Stopping job (1) with a save. Without: periflow-ray job stop 1 --now")
        terminal.wait_for("[node 0] saved")
        assert terminal.process.wait(DEADLINE_S) == 1
    assert driver.requests == [StopRequest(60.0)]


class Terminal:
    """A process on a terminal of its own, all three streams."""

    def __init__(self, command: list[str]) -> None:
        self._own_end, other_end = pty.openpty()
        self._seen = ""
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            command, stdin=other_end, stdout=other_end, stderr=other_end, env=environment, start_new_session=True
        )
        os.close(other_end)

    def wait_for(self, text: str) -> None:
        """Read until the text was shown after what was waited for last."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self._seen:
            ready, _, _ = select.select([self._own_end], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} was not shown, but {self._seen!r}"
            shown = os.read(self._own_end, 65536).decode()
            self._seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).replace("\r\n", "\n")
        self._seen = self._seen.partition(text)[2]

    def type(self, text: str) -> None:
        """Type on the keyboard."""
        os.write(self._own_end, text.encode())

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *details: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._own_end)
