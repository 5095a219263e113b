"""What torchrun prints when a rank fails, from torchrun itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from failing_output import KILLED_HINT, MODULE_HINT, describe, raised

FAILING_SCRIPT = """\
import os, signal
if os.environ["RANK"] == "0":
    signal.pause()
raise ValueError("the loss is not finite")
"""


@pytest.fixture(scope="module", params=["torchrun", "module"])
def torchrun_output(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What torchrun prints when rank 1 of 2 raises: the script's path and the output."""
    script = tmp_path_factory.mktemp("torchrun") / "train.py"
    script.write_text(FAILING_SCRIPT)
    torchrun = {
        "torchrun": [str(Path(sys.executable).parent / "torchrun")],
        "module": [sys.executable, "-m", "torch.distributed.run"],
    }
    done = subprocess.run(
        [*torchrun[request.param], "--standalone", "--nproc_per_node", "2", str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 1
    return script, done.stdout


def test_torchruns_report_is_left_out_and_its_failing_rank_is_named(torchrun_output):
    script, output = torchrun_output
    description = describe(output)
    assert description.startswith("node 0, rank 1: it ended with exit code 1.\nLast lines:\n")
    assert description.split("\n")[-4:] == [
        "  Traceback (most recent call last):",
        f'    File "{script}", line 4, in <module>',
        '      raise ValueError("the loss is not finite")',
        "  ValueError: the loss is not finite",
    ]


def test_a_rank_that_torchrun_saw_killed_is_said_to_be(torchrun_output):
    _, output = torchrun_output
    killed = output.replace("  exitcode  : 1 (pid", "  exitcode  : -9 (pid")
    assert describe(killed).split("\n")[:2] == [
        "node 0, rank 1: it was killed by SIGKILL.",
        f"Hint: {KILLED_HINT}",
    ]


def test_the_failing_rank_speaks_and_not_those_that_lost_it(torchrun_output):
    _, output = torchrun_output
    report = output[output.rindex("Traceback (most recent call last):\n") :]
    cause = raised("ModuleNotFoundError: No module named 'flash_attn'", "import flash_attn")
    casualty = raised("RuntimeError: [pair.cc:553] Connection closed by peer [127.0.0.1]:40625", "dist.all_reduce(t)")
    text = "\n".join(
        [
            "epoch 1",
            *(f"[rank1]: {line}" for line in cause.split("\n")),
            *(f"[rank0]: {line}" for line in casualty.split("\n")),
            report,
        ]
    )
    assert describe(text) == (
        "node 0, rank 1: it ended with exit code 1.\n"
        f"Hint: {MODULE_HINT.format('flash_attn')}\n"
        "Last lines:\n"
        "  epoch 1\n"
        "  [rank1]: Traceback (most recent call last):\n"
        '  [rank1]:   File "main.py", line 1, in f\n'
        "  [rank1]:     import flash_attn\n"
        "  [rank1]: ModuleNotFoundError: No module named 'flash_attn'"
    )
