"""A torchrun goes on in a process that has torch imported, and nobody notices but for the time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import periflow_ray.sdk
from periflow_ray.processes.keeper import find_descendants
from periflow_ray.runtime.command_jobs.warm_launcher import MARKER, VARIABLE, WarmLauncher

SHIM_DIR = Path(periflow_ray.sdk.__file__).parent / "shim"
TORCHRUN = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2"]
# What a rank sees of itself, and of who started it.
RANK = """\
import json, os, sys, time
told = {"rank": os.environ["RANK"], "world": os.environ["WORLD_SIZE"], "args": sys.argv[1:], "cwd": os.getcwd(),
        "attempt": os.environ["PERIFLOW_ATTEMPT"], "umask": os.umask(0o022), "parent": os.getppid()}
print(json.dumps(told), flush=True)
"""


class Launches:
    """Torchruns that a warm launcher may take over."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.printed: list[str] = []
        self.warm = WarmLauncher(directory / "launcher", str(directory), self.printed.append).start()
        self.env = {
            **os.environ,
            "PYTHONPATH": str(SHIM_DIR),
            VARIABLE: str(self.warm.socket_path),
            "PERIFLOW_ATTEMPT": "1",
        }
        (directory / "main.py").write_text(RANK)

    def start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        argv = list(command) or [*TORCHRUN, "main.py", "--lr", "0.1"]
        return subprocess.Popen(
            argv,
            env={**self.env, **variables},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, **variables: str) -> tuple[int, list[dict[str, object]], str]:
        """Exit code, what each rank told, and the errors."""
        process = self.start(*command, **variables)
        out, err = process.communicate(timeout=120)
        told = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        return process.returncode, sorted(told, key=lambda one: str(one["rank"])), err

    def warm_up(self) -> None:
        before = self.pid
        self.warm.warm_up()
        end_s = time.monotonic() + 60
        while self.pid in (None, before):
            assert time.monotonic() < end_s
            time.sleep(0.01)

    @property
    def pid(self) -> int | None:
        return self.warm._pid


def make_warm(directory: Path) -> Launches:
    """After a first torchrun, which found nothing warm."""
    launches = Launches(directory)
    exit_code, told, err = launches.run()
    assert (exit_code, len(told)) == (0, 2), err
    launches.warm_up()
    return launches


# One for all tests: each start of torch takes seconds.
@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launches]:
    launches = make_warm(tmp_path_factory.mktemp("launches"))
    yield launches
    launches.warm.close()


@pytest.fixture
def warm(launches: Launches) -> Launches:
    """Ready for the next torchrun."""
    (launches.directory / "main.py").write_text(RANK)
    return launches


def test_the_next_torchrun_is_as_the_first_one(warm, wait_until):
    (warm.directory / "main.py").write_text(RANK + "while not os.path.exists('go'): time.sleep(0.01)\n")
    process = subprocess.Popen(
        ["bash", "-c", f"umask 027; {' '.join(TORCHRUN)} main.py --lr 0.1"],
        env={**warm.env, "PERIFLOW_ATTEMPT": "2", "PROCESSED_ITERS": "20"},
        cwd=warm.directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: len(find_descendants(warm.pid)) == 3, deadline_s=60)
    launcher = find_descendants(warm.pid)[0]
    (warm.directory / "go").touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    told = sorted((json.loads(line) for line in out.splitlines()), key=lambda one: one["rank"])
    assert [one["rank"] for one in told] == ["0", "1"]
    for one in told:
        assert (one["world"], one["args"], one["attempt"]) == ("2", ["--lr", "0.1"], "2")
        assert (one["cwd"], one["umask"], one["parent"]) == (str(warm.directory), 0o027, launcher)
    assert warm.printed == []


@pytest.mark.parametrize(
    ("change", "value"),
    [("OMP_NUM_THREADS", "3"), ("PYTHONPATH", f"{SHIM_DIR}:/elsewhere"), ("CUDA_VISIBLE_DEVICES", "1")],
)
def test_another_environment_is_not_served(warm, change, value):
    pid = warm.pid
    process = warm.start(*TORCHRUN, "main.py", **{change: value})
    seen: list[int] = []
    while process.poll() is None:
        seen += find_descendants(pid)
    process.communicate()
    assert (process.returncode, seen) == (0, [])


def test_a_script_that_fails_fails_as_it_would(warm):
    (warm.directory / "main.py").write_text("import os, sys; sys.exit(3 if os.environ['RANK'] == '1' else 0)\n")
    exit_code, _, err = warm.run()
    assert exit_code == 1
    assert "exitcode  : 3" in err
    assert warm.run(*TORCHRUN[:1], "--no-such-option")[0] == 2


def test_a_module_is_launched_as_well(warm, wait_until):
    seen: list[int] = []
    process = warm.start(sys.executable, "-m", "torch.distributed.run", *TORCHRUN[1:], "main.py")
    wait_until(lambda: seen.extend(find_descendants(warm.pid)) or seen or process.poll() is not None, deadline_s=60)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert len(out.splitlines()) == 2
    assert seen


def test_signals_reach_it_and_its_end_is_the_callers(warm):
    # Torchrun may hang on a signal that comes while it still starts its ranks.
    (warm.directory / "main.py").write_text("import time\ntime.sleep(1)\nprint('{}', flush=True)\ntime.sleep(1000)\n")
    process = warm.start()
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["{}\n", "{}\n"]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    # As torchrun ends by itself when it gets one, and its ranks with it.
    assert process.returncode == 1
    assert find_descendants(warm.pid) == []


def test_whoever_kills_what_was_started_ends_the_rest(warm, wait_until):
    (warm.directory / "main.py").write_text("import time\ntime.sleep(1000)\n")
    process = warm.start()
    wait_until(lambda: len(find_descendants(warm.pid)) == 3, deadline_s=60)
    process.kill()
    process.wait()
    assert warm.warm.end_runs() == []
    process.communicate(timeout=30)
    assert find_descendants(warm.pid) == []
    # It serves the next one.
    (warm.directory / "main.py").write_text(RANK)
    assert warm.run()[0] == 0


def test_a_launcher_that_is_killed_kills_what_was_started(warm, wait_until):
    (warm.directory / "main.py").write_text("import time\ntime.sleep(1000)\n")
    process = warm.start()
    wait_until(lambda: len(find_descendants(warm.pid)) == 3, deadline_s=60)
    # The nearest one comes first.
    os.kill(find_descendants(warm.pid)[0], signal.SIGKILL)
    process.wait(timeout=30)
    assert process.returncode == -signal.SIGKILL
    # Its ranks are left.
    warm.warm.end_runs()
    process.communicate(timeout=30)


def test_a_warm_process_that_has_died_is_in_nobodys_way_and_nothing_is_left_of_the_next_one(tmp_path):
    warm = make_warm(tmp_path)
    try:
        assert warm.pid is not None
        os.kill(warm.pid, signal.SIGKILL)
        exit_code, told, err = warm.run()
        assert (exit_code, len(told)) == (0, 2), err
        warm.warm_up()
        pid = warm.pid
        assert f"{MARKER}={tmp_path}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    finally:
        warm.warm.close()
    assert not Path(f"/proc/{pid}").exists()
    assert not warm.warm.socket_path.exists()
