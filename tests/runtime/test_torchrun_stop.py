"""What torchrun says when it is told to end stays out of the log, and nothing else does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from periflow_ray.runtime.command_jobs.launchers.torchrun_stop import StopFilter

SIGNAL_STACK = [
    "Traceback (most recent call last):",
    '  File "/venv/bin/torchrun", line 8, in <module>',
    "    sys.exit(main())",
    "             ^^^^^^",
    "torch.distributed.elastic.multiprocessing.api.SignalException: Process 7096 got signal: 15",
]
WARNING = (
    "W1128 02:29:06.123000 7095 torch/distributed/elastic/multiprocessing/api.py:1010] Sending process 7099 closing "
    "signal SIGTERM"
)
OTHER_STACK = ["Traceback (most recent call last):", '  File "main.py", line 3, in <module>', "ValueError: no"]


def filter_lines(before: list[str], after: list[str]) -> list[str]:
    """What remains of lines before and after the command was told to end."""
    written: list[str] = []
    output = StopFilter(written.append)
    for line in before:
        output.take(line)
    output.begin()
    for line in after:
        output.take(line)
    output.close()
    return written


def test_torchruns_own_traceback_is_left_out_and_a_scripts_is_not():
    assert filter_lines(["a"], [WARNING, "saved", *SIGNAL_STACK, *OTHER_STACK, "b"]) == [
        "a",
        "saved",
        *OTHER_STACK,
        "b",
    ]


def test_before_the_stop_everything_stays():
    assert filter_lines([*SIGNAL_STACK, WARNING], []) == [*SIGNAL_STACK, WARNING]


def test_a_traceback_that_was_cut_off_stays():
    assert filter_lines([], OTHER_STACK[:2]) == OTHER_STACK[:2]
    assert filter_lines([], [*OTHER_STACK[:2], *SIGNAL_STACK]) == OTHER_STACK[:2]


def test_a_real_torchrun_that_is_told_to_end_says_nothing_of_it(tmp_path: Path):
    (tmp_path / "main.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(600)\n")
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "main.py"]
    written: list[str] = []
    output = StopFilter(written.append)
    with subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as torchrun:
        assert torchrun.stdout is not None
        told = False
        unfiltered = []
        for line in torchrun.stdout:
            unfiltered.append(line)
            output.take(line.rstrip("\n"))
            if line == "ready\n" and not told:
                output.begin()
                torchrun.terminate()
                told = True
    output.close()

    assert "SignalException" in "".join(unfiltered)
    assert written[-1] == "ready"
