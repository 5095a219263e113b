"""What runs before and after a command on a node: setup, and teardown."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from support.one_node import open_node
from support.tiny_wheels import make_wheel, offline

from periflow_ray.runtime.command_jobs import shell as shell_module
from periflow_ray.runtime.command_jobs.shell import CommandShell
from periflow_ray.runtime.monitor.contract import EndAttempt
from periflow_ray.store.root import StorageRoot

pytestmark = pytest.mark.usefixtures("sandboxes")


def test_a_setup_that_only_installs_runs_once_on_a_node(root: StorageRoot, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "tiny", "1.0")
    command = {
        "setup": "cd /workspace\nexport GREETING=hello\npip install tiny",
        "run": "echo $GREETING from $(basename $PWD) and tiny $(python -c 'import tiny; print(tiny.__version__)')",
    }
    with open_node(root, command, env_var=offline(tmp_path / "wheels")) as node:
        assert node.run() is None
        assert node.run() is None
        lines = node.take_lines()
    assert lines.count("hello from workspace and tiny 1.0") == 2
    assert sum("Successfully installed tiny-1.0" in line for line in lines) == 1
    assert not any("already satisfied" in line for line in lines)


def test_a_setup_of_which_a_part_failed_runs_again(root: StorageRoot, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "tiny", "1.0")
    command = {"setup": "pip install nonesuch\npip install tiny", "run": "echo runs"}
    with open_node(root, command, env_var=offline(tmp_path / "wheels")) as node:
        assert node.run() is None
        assert node.run() is None
        lines = node.take_lines()
    assert lines.count("runs") == 2
    assert sum("No matching distribution found for nonesuch" in line for line in lines) == 2


def test_a_setup_runs_again_when_a_file_that_it_installs_from_has_changed(root: StorageRoot, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "tiny", "1.0")
    make_wheel(tmp_path / "wheels", "tiny", "2.0")
    workspace = tmp_path / "work"
    workspace.mkdir()
    (workspace / "requirements.txt").write_text("tiny==1.0\n")
    command = {
        "setup": "cd work\npip install -r requirements.txt",
        "run": "python -c 'import tiny; print(tiny.__version__)'; echo tiny==2.0 > requirements.txt",
    }
    with open_node(root, command, workspace=workspace, env_var=offline(tmp_path / "wheels")) as node:
        for _ in range(3):
            assert node.run() is None
        versions = [line for line in node.take_lines() if line in ("1.0", "2.0")]
    assert versions == ["1.0", "2.0", "2.0"]


def test_the_setup_fails_as_a_whole_where_its_last_part_does(root: StorageRoot, tmp_path: Path) -> None:
    command = {"setup": "pip install nonesuch", "run": "echo runs"}
    with open_node(root, command, env_var=offline(tmp_path)) as node:
        failure = node.run()
        assert "runs" not in node.take_lines()
    assert failure is not None
    assert failure.exit_code == 1


@pytest.mark.parametrize("run", ["echo runs", "exit 3", "kill -9 $$"])
def test_a_teardown_runs_however_the_command_ended(root: StorageRoot, run: str) -> None:
    with open_node(root, {"setup": "touch made", "run": run, "teardown": "ls made; rm made"}) as node:
        failure = node.run()
        assert "made" in node.take_lines()
        assert node.notes == []
    assert (failure is None) == (run == "echo runs")


def test_a_teardown_runs_when_the_job_is_stopped(root: StorageRoot) -> None:
    with open_node(root, {"run": "sleep 1000", "teardown": "echo tidy"}) as node:
        node.run(lambda shell: shell.end(EndAttempt("stop", "stopped")))
        assert "tidy" in node.take_lines()


def test_a_teardown_that_fails_is_told_and_changes_nothing(root: StorageRoot) -> None:
    with open_node(root, {"run": "echo runs", "teardown": "exit 5"}) as node:
        assert node.run() is None
    assert node.notes == [
        "the teardown on node 0 failed: it ended with exit code 5. The job ends as it would have without it"
    ]


def test_a_teardown_that_does_not_end_is_ended(root: StorageRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_module, "TEARDOWN_TIMEOUT_S", 0.2)
    with open_node(root, {"run": "echo runs", "teardown": "sleep 1000"}) as node:
        assert node.run() is None
    assert "it was ended after 0 s" in node.notes[0]


def test_a_stop_hurries_a_teardown(root: StorageRoot, tmp_path: Path) -> None:
    def stop(shell: CommandShell) -> None:
        deadline_s = time.monotonic() + 30
        while not (tmp_path / "begun").exists() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        shell.end(EndAttempt("stop", "stopped"))

    teardown = f"trap 'echo hurried; exit 0' TERM; touch {tmp_path}/begun; sleep 1000 & wait"
    with open_node(root, {"run": "echo runs", "teardown": teardown}) as node:
        stopping = threading.Thread(target=stop, args=(node.shell,))
        node.run(lambda shell: stopping.start())
        stopping.join()
        assert "hurried" in node.take_lines()
