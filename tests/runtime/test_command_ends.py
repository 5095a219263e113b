"""Whether a command that ended with 0 has succeeded, and where a process that is started again in it begins to count.

Real commands below a real shell of a member, without Ray.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.links import NO_LINKS, TELLS_NOBODY

from periflow_ray.jobs import claim_job_id, read_claim
from periflow_ray.jobs.logs import LogWriter
from periflow_ray.plan import build_plan, local_vm
from periflow_ray.runtime.command_jobs.shell import CommandShell
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.job_end import describe_early_end
from periflow_ray.runtime.member import sandbox as sandbox_module
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.runtime.member.shell import Records
from periflow_ray.runtime.monitor.contract import AttemptStart, Ending
from periflow_ray.spec import JobSpec
from periflow_ray.store.root import StorageRoot


@dataclass(frozen=True)
class Ended:
    """How a command ended: what the member makes of it, the steps it heard of, the steps of snapshots."""

    failure: Failure | None
    records: Records
    snapshots: list[int]

    @property
    def summary(self) -> str:
        return "" if self.failure is None else self.failure.describe()


@pytest.fixture
def run(root: StorageRoot, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ended]]:
    """Runs a command with a script ``main.py`` where it starts; ``pf`` is imported in it."""

    def run(script: str, command: str, *, launch_mode: str = "node", num_devices: int = 1, **env_var: str) -> Ended:
        docker = {"command": command, "env_var": {"MAIN": f"{directory}/main.py", **env_var}}
        Path(directory, "main.py").write_text("import os, signal, sys\nimport periflow_ray as pf\n" + script)
        spec = JobSpec.model_validate(
            {
                "vm": "local",
                "num_devices": num_devices,
                "job_setting": {"type": "custom", "launch_mode": launch_mode, "docker": docker},
                "checkpoint": {"output_checkpoint_dir": "/workspace/ckpt"},
            }
        )
        plan = build_plan(spec, local_vm(devices_per_node=num_devices), storage_uri=root.uri)
        snapshots: list[int] = []
        with MemberLog(LogWriter(root, 1, 0), "node 0", is_local=True) as log:
            shell = CommandShell(plan, root, 1, 0, read_claim(root, 1), {}, log, lambda text: None)
            shell.prepare(1, TELLS_NOBODY)
            shell.start(
                AttemptStart(1, 1),
                dataclasses.replace(NO_LINKS, save=lambda step, replace_waiting: snapshots.append(step)),
            )
            failure = shell.wait()
            shell.close()
            failure = failure or shell.check()
            records = shell.take_records()
            shell.close_launcher()
        return Ended(failure, records, snapshots)

    claim_job_id(root)
    # The path of tmp_path may be too long for a socket.
    with tempfile.TemporaryDirectory(prefix="pf-", dir="/tmp") as directory:
        monkeypatch.setattr(sandbox_module, "_base_dir", lambda: Path(directory) / "sandboxes")
        run.directory = Path(directory)  # type: ignore[attr-defined]
        yield run


THREE_OF_500 = """
pf.init(total_train_steps=500)
for _ in range(3):
    with pf.train_step():
        pass
"""


def in_a_fork(script: str) -> str:
    """The script in a process that multiprocessing forks, which ends without atexit."""
    return (
        "import multiprocessing\ndef train():"
        + script.replace("\n", "\n    ")
        + "\nchild = multiprocessing.get_context('fork').Process(target=train)\nchild.start()\nchild.join()\n"
    )


KILLED = THREE_OF_500 + "pf.upload_checkpoint()\nos.kill(os.getpid(), signal.SIGKILL)\n"


@pytest.mark.parametrize(
    ("script", "command"),
    [
        (THREE_OF_500 + "raise RuntimeError('boom')\n", "python $MAIN | cat"),
        (THREE_OF_500 + "raise RuntimeError('boom')\n", "python $MAIN; echo done"),
        (THREE_OF_500 + "raise KeyboardInterrupt\n", "python $MAIN || true"),
        (KILLED, "python $MAIN; true"),
        (THREE_OF_500 + "pf.upload_checkpoint()\nos._exit(0)\n", "python $MAIN"),
        (KILLED.replace("SIGKILL", "SIGTERM"), "python $MAIN; true"),
        (THREE_OF_500 + "pf.upload_checkpoint()\nopen('ready', 'w').close()\nsignal.pause()\n",
         "python $MAIN & until [ -e ready ]; do sleep 0.01; done"),
        (in_a_fork(THREE_OF_500 + "raise RuntimeError('boom')\n"), "python $MAIN"),
        (in_a_fork(THREE_OF_500 + "sys.exit(3)\n"), "python $MAIN"),
        (KILLED.replace("total_train_steps=500", ""), "python $MAIN | cat"),
        (THREE_OF_500 + "sys.exit(1)\n", "python $MAIN; true"),
        (THREE_OF_500 + "sys.exit('no data')\n", "python $MAIN | cat"),
        ("from sys import exit as leave\n" + THREE_OF_500 + "leave(2)\n", "python $MAIN; true"),
        (THREE_OF_500 + "exit(1)\n", "python $MAIN; true"),
        (THREE_OF_500 + "import argparse\nargparse.ArgumentParser().parse_args(['--no'])\n", "python $MAIN; true"),
        # Only the first of two programs has come to its end.
        (THREE_OF_500 + "sys.exit(os.path.exists('x') or open('x', 'w').close())\n",
         "python $MAIN && python $MAIN; true"),
    ],
    ids=["tee", "echo", "true", "killed", "os._exit", "sigterm", "background", "fork", "fork-exit", "without-total",
         "exit-code", "exit-text", "imported-exit", "builtin-exit", "argparse", "second-program"],
)  # fmt: skip
def test_a_rank_that_failed_is_not_hidden_by_the_exit_code(run, script, command):
    ended = run(script, command)
    assert "the command ended with exit code 0, but rank 0 (process " in ended.summary
    assert "had ended at step 3" in ended.summary
    assert ended.records.steps == {0: 3}


def test_the_lines_of_what_is_hidden_are_shown(run):
    ended = run(THREE_OF_500 + "import nothing_of_this_name\n", "python $MAIN; echo done")
    assert "Hint: the Python module 'nothing_of_this_name' is missing" in ended.summary
    assert "ended at step 3 of 500 by an exception that nobody caught" in ended.summary
    assert "ModuleNotFoundError" in ended.summary


@pytest.mark.parametrize(
    ("script", "command"),
    [
        (THREE_OF_500, "python $MAIN"),
        (THREE_OF_500 + "sys.exit()\n", "python $MAIN | cat"),
        (
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n" + THREE_OF_500 + "signal.raise_signal(15)\n",
            "python $MAIN",
        ),
        (KILLED.replace("500", "3"), "python $MAIN; true"),
        (in_a_fork(THREE_OF_500), "python $MAIN"),
        (THREE_OF_500 + "try:\n    sys.exit(1)\nexcept SystemExit as end:\n    assert end.code == 1\n", "python $MAIN"),
        # The last process of a rank counts.
        (THREE_OF_500 + "if not os.path.exists('x'):\n    open('x', 'w')\n    raise RuntimeError('boom')\n",
         "python $MAIN || python $MAIN"),
    ],
    ids=["early", "exit", "sigterm-caught", "last-step", "fork", "exit-caught", "again"],
)  # fmt: skip
def test_a_script_that_comes_to_its_end_has_succeeded(run, script, command):
    assert run(script, command).summary == ""


def test_a_template_may_say_that_the_exit_code_is_right(run):
    assert run(KILLED, "timeout 100 python $MAIN || true", PERIFLOW_TRUST_EXIT_CODE="1").summary == ""


# Saves at each second step, and fails once after step 5, one step beyond what was saved.
FAILS_ONCE = """
begins = open(os.path.dirname(__file__) + "/begins", "a")
print(pf.resumed_step(), os.environ["PROCESSED_ITERS"], pf.latest_checkpoint_dir() is not None, file=begins, flush=True)
pf.init(total_train_steps=8)
for step in range(pf.resumed_step() + 1, 9):
    with pf.train_step():
        pass
    if step % 2 == 0:
        pf.upload_checkpoint()
    if step == 5 and not os.path.exists("failed"):
        open("failed", "w").close()
        {failure}
"""
# What torchrun does with --max-restarts, in the variable that it sets.
LIKE_TORCHRUN = "TORCHELASTIC_RESTART_COUNT=0 python $MAIN || TORCHELASTIC_RESTART_COUNT=1 python $MAIN"


LOOP = "until python $MAIN; do :; done"


@pytest.mark.parametrize(
    ("command", "failure"),
    [
        (LIKE_TORCHRUN, "sys.exit(1)"),
        (LIKE_TORCHRUN, "raise RuntimeError"),
        (LOOP, "raise RuntimeError"),
        (LOOP, "sys.exit(1)"),
        (LOOP, "os.kill(os.getpid(), signal.SIGKILL)"),
    ],
)
def test_a_process_that_is_started_again_in_the_command_counts_on(run, command, failure):
    ended = run(FAILS_ONCE.format(failure=failure), command)
    assert ended.summary == ""
    # No step is saved twice.
    assert ended.snapshots == [2, 4, 6, 8]
    assert ended.records.steps == {0: 8}
    assert [(each.number, each.resumed_step) for each in ended.records.beginnings.values()] == [(2, 4)]
    assert run.directory.joinpath("begins").read_text().splitlines() == ["0 0 False", "4 4 True"]


def test_a_program_after_another_one_begins_anew(run):
    ended = run(THREE_OF_500.replace("500", "3") + "pf.upload_checkpoint()\n", "python $MAIN && python $MAIN")
    assert (ended.summary, ended.snapshots) == ("", [3, 3])


@pytest.mark.parametrize("failure", ["sys.exit(1)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_program_that_came_to_its_end_does_not_let_the_next_one_count_anew_after_a_failure(run, failure):
    warm_up = "python -c 'import periflow_ray as pf; pf.init(1); pf.upload_checkpoint()'"
    ended = run(FAILS_ONCE.format(failure=failure), f"{warm_up} && until python $MAIN; do :; done")
    assert (ended.summary, ended.snapshots) == ("", [0, 2, 4, 6, 8])
    assert run.directory.joinpath("begins").read_text().splitlines() == ["0 0 False", "4 4 True"]


def test_a_rank_that_came_to_its_end_does_not_let_the_others_count_anew(run):
    # Both end after step 5; only the second one has failed.
    script = FAILS_ONCE.format(failure="sys.exit(rank)").replace('"failed"', '"failed" + str(rank)')
    as_rank = "RANK={0} LOCAL_RANK={0} LOCAL_WORLD_SIZE=2 WORLD_SIZE=2 python $MAIN"
    command = f"until {as_rank.format(0)} & {as_rank.format(1)}; do wait; done; wait"
    ended = run("rank = int(os.environ['RANK'])\n" + script, command)
    assert (ended.summary, ended.snapshots) == ("", [2, 4, 6, 8])
    assert run.directory.joinpath("begins").read_text().splitlines() == ["0 0 False"] * 2 + ["4 4 True"] * 2


def test_processes_of_a_job_are_not_told_which_process_of_a_launcher_they_are(run, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("PMIX_RANK", "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    script = """
names = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_JOB_ID", "PMIX_RANK", "KUBERNETES_PORT", "OMP_NUM_THREADS", "RANK")
print(*(os.environ.get(name) for name in names), file=open(os.path.dirname(__file__) + "/" + os.environ["RANK"], "w"))
pf.init(1)
"""
    env_var = {"SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "KUBERNETES_PORT": "tcp://10.0.0.1:443"}
    assert run(script, "python $MAIN", launch_mode="device", num_devices=2, **env_var).summary == ""
    told = [run.directory.joinpath(rank).read_text().split() for rank in ("0", "1")]
    # Several processes share the machine, as below torchrun.
    assert told == [["None", "None", "7", "None", "None", "1", rank] for rank in ("0", "1")]


def test_a_job_that_succeeds_early_says_at_which_step():
    assert describe_early_end(Ending(last_step=500, total_train_steps=500)) is None
    assert describe_early_end(Ending(last_step=3)) is None
    told = describe_early_end(Ending(last_step=45, total_train_steps=500))
    assert told is not None
    assert told.startswith("the job ended: success, although only 45 of 500 steps were made")
