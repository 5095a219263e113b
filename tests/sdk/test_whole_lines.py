"""Each line that a Python process of a command prints is one write, so that lines of several processes do not mix."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import periflow_ray.sdk

SHIM_DIR = Path(periflow_ray.sdk.__file__).parent / "shim"


def writes_of(script: str, *options: str, stream: str = "stdout", **variables: str) -> list[str]:
    """What a process writes, one text a write: that is what a packet of such a socket is."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with its:
            subprocess.run(
                [sys.executable, *options, "-c", script],
                env={"PATH": os.defpath, "PYTHONPATH": str(SHIM_DIR), **variables},
                check=True,
                **{stream: its.fileno()},
            )
        packets = []
        while packet := ours.recv(1 << 16):
            packets.append(packet.decode())
        return packets


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize(("options", "variables"), [(["-u"], {}), ([], {"PYTHONUNBUFFERED": "1"}), ([], {})])
def test_a_line_and_its_end_are_written_together_and_at_once(stream, options, variables):
    script = f"""
import sys
for number in range(3):
    print("line", number, {{"loss": 0.5}}, file=sys.{stream})
print("50 %", end="\\r", file=sys.{stream})
print("at once", end="", flush=True, file=sys.{stream})
print("the end", end="", file=sys.{stream})
"""
    assert writes_of(script, *options, stream=stream, **variables) == [
        *(f"line {number} {{'loss': 0.5}}\n" for number in range(3)),
        "50 %\r",
        "at once",
        "the end",
    ]


def test_a_sitecustomize_of_the_users_own_is_run_as_well(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("own = 'the user\\'s'\n")
    script = "import sitecustomize; print(sitecustomize.own, sitecustomize.__file__)"
    path = os.pathsep.join((str(SHIM_DIR), str(tmp_path)))
    assert writes_of(script, PYTHONPATH=path) == [f"the user's {tmp_path / 'sitecustomize.py'}\n"]


def test_python_starts_where_there_is_no_other(tmp_path):
    assert writes_of("import sitecustomize; print('ok')") == ["ok\n"]


@pytest.mark.parametrize(("num_chars", "num_lines"), [(100, 300), (5_000, 100), (1_000_000, 3)])
def test_lines_of_any_length_are_whole_where_processes_share_a_pipe(num_chars, num_lines):
    script = f"""
import sys, threading
def talk(stream):
    for _ in range({num_lines}):
        print(sys.argv[1] * {num_chars}, file=stream)
threads = [threading.Thread(target=talk, args=(stream,)) for stream in (sys.stdout, sys.stderr)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    read_fd, write_fd = os.pipe()
    names = "abcd"
    env = {"PATH": os.defpath, "PYTHONPATH": str(SHIM_DIR), "PYTHONUNBUFFERED": "1"}
    children = [
        subprocess.Popen([sys.executable, "-c", script, name], env=env, stdout=write_fd, stderr=write_fd)
        for name in names
    ]
    os.close(write_fd)
    with os.fdopen(read_fd) as pipe:
        lines = pipe.read().splitlines()
    assert [child.wait(timeout=60) for child in children] == [0] * len(names)
    assert Counter(lines) == {name * num_chars: 2 * num_lines for name in names}


def test_the_streams_are_like_pythons_own():
    script = """
import io, sys
for stream, original in ((sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__)):
    assert stream is original and isinstance(stream, io.TextIOWrapper)
    print(stream.name, stream.mode, stream.encoding, stream.errors, stream.fileno(), stream.isatty(), stream.writable())
sys.stdout.buffer.write(b"bytes\\n")
sys.stdout.reconfigure(encoding="ascii", errors="replace")
print("\\u00e9")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": os.defpath, "PYTHONPATH": str(SHIM_DIR), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "<stdout> w utf-8 surrogateescape 1 False True",
        "<stderr> w utf-8 backslashreplace 2 False True",
        "bytes",
        "?",
    ]
