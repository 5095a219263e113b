"""The shell of a command job's member, with real processes and no Ray."""

from __future__ import annotations

import fcntl
import os
import re
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.links import NO_LINKS, TELLS_NOBODY
from support.powerless_keeper import use_powerless_keeper

from periflow_ray.errors import JobFailedError
from periflow_ray.jobs import claim_job_id, read_claim
from periflow_ray.jobs.logs import LogWriter, read_logs
from periflow_ray.plan import build_plan, find_vm, local_vm
from periflow_ray.runtime.command_jobs.shell import CommandShell
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.runtime.monitor.contract import AttemptStart
from periflow_ray.spec import JobSpec
from periflow_ray.store.root import StorageRoot
from periflow_ray.submit.workspace import pack_workspace, scan_workspace


@pytest.mark.usefixtures("sandboxes")
def test_a_process_that_cannot_be_ended_is_told_and_the_next_attempt_has_other_directories(
    root: StorageRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_powerless_keeper(tmp_path, monkeypatch)
    spec = JobSpec.model_validate(
        {
            "vm": "local",
            "num_devices": 1,
            "job_setting": {"type": "custom", "docker": {"command": "sleep 1000 & exit 3"}},
            "checkpoint": {"output_checkpoint_dir": "/workspace/ckpt"},
        }
    )
    plan = build_plan(spec, find_vm("local"), storage_uri=root.uri)
    notes: list[str] = []
    claim_job_id(root)
    with MemberLog(LogWriter(root, 1, 0), "node 0", is_local=True) as log:
        shell = CommandShell(plan, root, 1, 0, read_claim(root, 1), {}, log, notes.append)
        shell.prepare(1, TELLS_NOBODY)
        first = shell.output_dir
        shell.start(
            AttemptStart(1, 1),
            NO_LINKS,
        )
        failure = shell.wait()
        shell.close()
        shell.close_launcher()
        assert failure is not None
        assert failure.exit_code == 3
        left = re.fullmatch(r"process (\d+) \(sleep 1000\) on node 0 cannot be ended, .*", notes[-1])
        assert left is not None, notes
        shell.prepare(2, TELLS_NOBODY)
        assert first is not None
        assert shell.output_dir == Path(str(first).replace("/node-0/", "/node-0.1/"))
    os.kill(int(left[1]), signal.SIGKILL)


def run_command(
    root: StorageRoot, command: str, secrets: Mapping[str, str] | None = None, **template: object
) -> tuple[object, list[str]]:
    """What became of a job's command on one node, and the lines of its log and its notes."""
    spec = JobSpec.model_validate(
        {
            "vm": "local",
            "num_devices": 1,
            "job_setting": {"type": "custom", "docker": {"command": command}},
            **template,
        }
    )
    plan = build_plan(spec, local_vm(devices_per_node=spec.num_devices), storage_uri=root.uri)
    claim_job_id(root)
    with MemberLog(LogWriter(root, 1, 0), "node 0", is_local=True) as log:
        shell = CommandShell(plan, root, 1, 0, read_claim(root, 1), secrets or {}, log, log.write)
        try:
            shell.prepare(1, TELLS_NOBODY)
            shell.start(AttemptStart(1, 1), NO_LINKS)
            failure = shell.wait() or shell.check()
        finally:
            shell.close()
            shell.close_launcher()
    return failure, [line.text for line in read_logs(root, 1)]


@pytest.mark.usefixtures("sandboxes")
def test_a_command_of_any_length_runs(root: StorageRoot) -> None:
    command = "\n".join(
        ["exit() { echo 'no'; }", *[f": {number:0100}" for number in range(3000)], "echo $0 $# /workspace"]
    )
    assert len(command) > 300_000
    failure, lines = run_command(root, command)
    assert failure is None
    assert [re.sub("/tmp/pf-.*/root/", "<root>/", line) for line in lines] == [
        "mount paths in the command are rewritten (here on node 0): /workspace -> <root>/workspace",
        "bash 0 <root>/workspace",
    ]


@pytest.mark.usefixtures("sandboxes")
def test_long_lines_of_ranks_that_are_no_python_programs_do_not_mix(root: StorageRoot) -> None:
    # Beyond what a pipe takes at once; bash's printf writes it in pieces.
    command = 'line=$(printf "%20000s" | tr " " $RANK); for _ in $(seq 100); do printf "%s\\n" $line; done'
    docker = {"type": "custom", "launch_mode": "device", "docker": {"command": command}}
    failure, lines = run_command(root, command, num_devices=4, job_setting=docker)
    assert failure is None
    assert Counter(lines) == {str(rank) * 20_000: 100 for rank in range(4)}


@pytest.mark.usefixtures("sandboxes")
def test_variables_that_no_program_can_be_started_with_are_named(root: StorageRoot) -> None:
    # What submit cannot know: those of the cluster's machines come on top.
    with pytest.raises(
        JobFailedError, match=r"its variables are too large: .* the largest ones HUGE \(200,004\), "
    ) as caught:
        run_command(root, "true", {"HUGE": "hunter2." * 25_000})
    assert "hunter2" not in str(caught.value)


@pytest.mark.usefixtures("sandboxes")
def test_while_a_job_runs_what_clears_out_tmp_leaves_its_sandbox_alone(root: StorageRoot, tmp_path: Path) -> None:
    spec = JobSpec.model_validate(
        {"vm": "local", "num_devices": 1, "job_setting": {"type": "custom", "docker": {"command": "true"}}}
    )
    claim_job_id(root)
    with MemberLog(LogWriter(root, 1, 0), "node 0", is_local=True) as log:
        plan = build_plan(spec, find_vm("local"), storage_uri=root.uri)
        shell = CommandShell(plan, root, 1, 0, read_claim(root, 1), {}, log, print)
        directory = shell.prepare(1, TELLS_NOBODY).parent
        assert not can_be_cleaned(directory)
        shell.close()
        assert can_be_cleaned(directory)


def can_be_cleaned(directory: Path) -> bool:
    """Whether systemd-tmpfiles would look for old files in it: it takes an exclusive lock before."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@pytest.mark.usefixtures("sandboxes")
def test_files_that_nothing_keeps_are_told_at_the_end(root: StorageRoot, tmp_path: Path) -> None:
    workspace = tmp_path / "app"
    workspace.mkdir()
    (workspace / "main.py").touch()
    pack_workspace(scan_workspace(workspace), tmp_path / "workspace.tar.gz")
    root.write_bytes("jobs/1/workspace.tar.gz", (tmp_path / "workspace.tar.gz").read_bytes())
    checkpoint = {"output_checkpoint_dir": "/workspace/ckpt"}
    write = (
        "echo 1 > {0}/model.pt; mkdir -p app/__pycache__ && echo 1 > app/__pycache__/main.pyc; echo 2 >> app/main.py"
    )
    _, lines = run_command(root, write.format("$CKPT_DIR"), checkpoint=checkpoint)
    assert lines == []
    write = "mkdir lightning_logs; echo 1234567 > lightning_logs/a.csv; touch -d '1 hour ago' app/b.csv"
    _, lines = run_command(root, write, checkpoint=checkpoint)
    assert lines == [
        "files that the command wrote outside checkpoint.output_checkpoint_dir are deleted with the job: 2 (8 B; the "
        "newest is '/workspace/lightning_logs/a.csv'). Only checkpoints, metrics and the log are kept"
    ]


@pytest.mark.usefixtures("sandboxes")
def test_the_command_inherits_the_variables_of_the_shell_that_submitted_it(root, monkeypatch):
    """And of this process, which another shell's cluster started, only what Ray has given it."""
    for name, value in {"OF_CLUSTER": "1", "CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "2", "HOME": "/x"}.items():
        monkeypatch.setenv(name, value)
    shown = [
        "OF_CLUSTER",
        "OF_SHELL",
        "IN_TEMPLATE",
        "SECRET",
        "CUDA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "HOME",
        "RANK",
    ]
    command = "; ".join(f'echo "{name}=${{{name}-none}}"' for name in [*shown, "RAY_JOB_ID"])
    spec = JobSpec.model_validate(
        {
            "vm": "local",
            "num_devices": 1,
            "job_setting": {"type": "custom", "docker": {"command": command, "env_var": {"IN_TEMPLATE": "template"}}},
        }
    )
    plan = build_plan(spec, find_vm("local"), storage_uri=root.uri)
    environ = {"OF_SHELL": "1", "IN_TEMPLATE": "shell", "SECRET": "shell", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    environ |= {"PATH": os.environ["PATH"], "HOME": "/ada", "RANK": "7", "RAY_JOB_ID": "01"}
    claim_job_id(root)

    def run(shell_variables: dict[str, str]) -> list[str]:
        lines: list[str] = []
        with MemberLog(LogWriter(root, 1, 0), "node 0", is_local=True) as log:
            monkeypatch.setattr(log, "write", lambda text: lines.append(text) or text)
            secrets = {"SECRET": "stored"}
            shell = CommandShell(plan, root, 1, 0, read_claim(root, 1), secrets, log, print, shell_variables)
            shell.prepare(1, TELLS_NOBODY)
            shell.start(AttemptStart(1, 1), NO_LINKS)
            assert shell.wait() is None
            shell.close()
            shell.close_launcher()
        return [line.partition("=")[2] for line in lines]

    assert run(environ) == ["none", "1", "template", "stored", "3", "2", "/ada", "none", "none"]
    assert run({**environ, "OMP_NUM_THREADS": "8"})[5] == "8"
    # On another cluster.
    assert run({}) == ["1", "none", "template", "stored", "3", "2", "/x", "none", "none"]
