from __future__ import annotations

import subprocess
import sys

import pytest

from periflow_ray.runtime.member import stacks
from periflow_ray.runtime.member.stacks import dump_stacks

STANDS_STILL = """
import signal
def wait_for_gradients():
    print("waits", flush=True)
    signal.pause()
wait_for_gradients()
"""


@pytest.fixture
def process_that_stands_still():
    process = subprocess.Popen([sys.executable, "-c", STANDS_STILL], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    yield process
    process.kill()
    process.communicate()


def test_the_function_in_which_a_process_stands_is_shown(process_that_stands_still):
    lines = dump_stacks(process_that_stands_still.pid)
    assert any("wait_for_gradients" in line for line in lines), lines
    # Reading does not end it.
    assert process_that_stands_still.poll() is None


def test_of_a_process_that_is_gone_the_reason_is_told(process_that_stands_still):
    process_that_stands_still.kill()
    process_that_stands_still.wait()
    lines = dump_stacks(process_that_stands_still.pid)
    assert lines
    assert not any("wait_for_gradients" in line for line in lines)


def test_without_py_spy_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(stacks.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert dump_stacks(1) == ["the stack of process 1 cannot be read: py-spy is not installed"]


def test_a_py_spy_that_hangs_is_given_up(monkeypatch, tmp_path):
    program = tmp_path / "py-spy"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(stacks.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(stacks, "_TIMEOUT_S", 0.2)
    (line,) = dump_stacks(1)
    assert line.startswith("the stack of process 1 cannot be read: ")
    assert "timed out" in line
