"""The keeper runs a stand-in for the driver: a script in the place of the interpreter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from periflow_ray.runtime.driver_keeper import KeeperLine

KEEPER = (
    "import sys; sys.executable = {driver!r}; from periflow_ray.runtime.driver_keeper import main; sys.exit(main())"
)
RESTARTED = "the job's driver was killed by signal 9; starting it again"


class Keeper:
    """A keeper whose driver is a shell script; ``run`` is the number of the script's run."""

    def __init__(self, directory: Path, script: str, env: dict[str, str]) -> None:
        self.runs = directory / "runs"
        driver = directory / "driver"
        driver.write_text(f'#!/bin/bash\necho "$@" >> {self.runs}\nrun=$(wc -l < {self.runs})\n{script}\n')
        driver.chmod(0o755)
        self.cloud_file = directory / "cloud.json"
        self.cloud_file.write_text("{}")
        self.cloud_file.chmod(0o600)
        self.process = subprocess.Popen(
            [sys.executable, "-c", KEEPER.format(driver=str(driver)), "--job-id", "7"],
            env={**os.environ, "PERIFLOW_CLOUD_ENV_FILE": str(self.cloud_file), **env},
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def num_runs(self) -> int:
        return len(self.runs.read_text().splitlines()) if self.runs.exists() else 0

    def finish(self) -> tuple[int, list[str]]:
        """Its exit code and what it said."""
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors.splitlines()


@pytest.fixture
def keep(tmp_path):
    """Starts a keeper; its driver runs the given script."""
    keepers: list[Keeper] = []

    def start(script: str, **env: str) -> Keeper:
        keepers.append(Keeper(tmp_path, script, env))
        return keepers[-1]

    yield start
    for keeper in keepers:
        keeper.process.kill()
        keeper.process.communicate()


@pytest.mark.parametrize("exit_code", [0, 1, 3])
def test_a_driver_that_ends_by_itself_has_said_how_the_job_stands(keep, exit_code):
    keeper = keep(f"exit {exit_code}")
    assert keeper.finish() == (exit_code, [])
    assert keeper.runs.read_text() == "-m periflow_ray.runtime.driver --job-id 7\n"


def test_a_driver_that_is_killed_is_started_again(keep):
    keeper = keep("[ $run -lt 3 ] && kill -KILL $$; exit 0")
    assert keeper.finish() == (0, [RESTARTED] * 2)
    first = "-m periflow_ray.runtime.driver --job-id 7"
    assert keeper.runs.read_text().splitlines() == [first, f"{first} --again", f"{first} --again"]


def test_a_driver_that_is_killed_at_once_again_and_again_is_given_up(keep):
    keeper = keep("kill -KILL $$")
    assert keeper.finish() == (128 + signal.SIGKILL, [RESTARTED] * 3)
    assert keeper.num_runs == 4


def test_every_driver_gets_the_cloud_variables_and_none_stay_behind(keep):
    # A driver deletes the file once it has read it.
    keeper = keep(
        '[ -e "$PERIFLOW_CLOUD_ENV_FILE" ] || exit 9\nstat -c %a "$PERIFLOW_CLOUD_ENV_FILE" >&2\n'
        'rm "$PERIFLOW_CLOUD_ENV_FILE"\n[ $run -lt 2 ] && kill -KILL $$; exit 0'
    )
    assert keeper.finish() == (0, ["600", RESTARTED, "600"])
    assert not keeper.cloud_file.exists()


def test_a_driver_that_never_read_the_cloud_variables_leaves_none_either(keep):
    keeper = keep("exit 1")
    assert keeper.finish() == (1, [])
    assert not keeper.cloud_file.exists()


def test_the_next_driver_gets_the_key_of_the_secrets_and_no_environment_has_it(keep, tmp_path):
    talk = f"""
import os, signal
from periflow_ray.runtime.driver_keeper import KeeperLine
with KeeperLine.open() as keeper:
    key = keeper.read_key()
    open("{tmp_path}/keys", "a").write(f"key {{key}}\\n")
    if not key:
        keeper.keep_key("the-key")
        os.kill(os.getpid(), signal.SIGKILL)
    assert "PERIFLOW_KEEPER_FD" not in os.environ
"""
    keeper = keep(f"cat /proc/$$/environ >> {tmp_path}/environ; exec {sys.executable} -c '{talk}'")
    assert keeper.finish() == (0, [RESTARTED])
    assert (tmp_path / "keys").read_text() == "key \nkey the-key\n"
    assert b"the-key" not in (tmp_path / "environ").read_bytes()


def test_a_driver_without_a_keeper_keeps_and_gets_nothing(monkeypatch):
    monkeypatch.delenv("PERIFLOW_KEEPER_FD", raising=False)
    with KeeperLine.open() as keeper:
        keeper.keep_key("the-key")
        assert keeper.read_key() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_handed_to_the_driver_which_ends_the_job(keep, wait_until, tmp_path, number):
    keeper = keep(f"trap 'exit 5' {number.name[3:]}\ntouch {tmp_path}/ready\nwhile true; do sleep 0.05; done")
    wait_until((tmp_path / "ready").exists)
    keeper.process.send_signal(number)
    assert keeper.finish() == (5, [])


def test_a_driver_that_dies_of_the_signal_is_not_started_again(keep, wait_until, tmp_path):
    keeper = keep(f"touch {tmp_path}/ready\nexec sleep 600")
    wait_until((tmp_path / "ready").exists)
    keeper.process.send_signal(signal.SIGTERM)
    assert keeper.finish() == (128 + signal.SIGTERM, [])
    assert keeper.num_runs == 1


def test_a_driver_whose_keeper_is_killed_is_told_to_stop(keep, tmp_path, wait_until):
    told = tmp_path / "told"
    keeper = keep(f"trap 'echo stop > {told}; exit 0' TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done")
    wait_until((tmp_path / "ready").exists)
    keeper.process.kill()
    wait_until(told.exists)
