"""A ``ray up`` that says what a test wants: a package that is called ray, for the beginning of the PYTHONPATH."""

from __future__ import annotations

from pathlib import Path

GOOD = """\
Cluster: mine

2026-01-01 10:00:00,000\tINFO util.py:382 -- setting max workers for head node type to 0
No head node found. Launching a new cluster. Confirm [y/N]: y [automatic, due to --yes]
Acquiring an up-to-date head node
  Launched a new head node
<1/1> Setting up head node
  New status: waiting-for-ssh
  [1/7] Waiting for SSH to become available
    Running `uptime` as a test.
    Running `uptime` as a test.
  [2/7] Processing file mounts
  [5/7] Initializing command runner
  [6/7] Running setup commands
    (0/1) bash ~/periflow-ray/bin/node.sh setup
  [7/7] Starting the Ray runtime
  New status: up-to-date
"""
SCRIPT = """\
import os, sys
from pathlib import Path

def up():
    here = Path(__file__).parents[2]
    tries = here / "tries"
    with open(tries, "a") as file:
        print(sys.argv[1:], file=file)
    number = len(tries.read_text().splitlines())
    answers = sorted(here.glob("answer-*"))
    answer = answers[min(number, len(answers)) - 1]
    print(answer.read_text(), end="")
    sys.exit(int(answer.suffix[1:]))
"""
# As much of Ray as a first task needs.
TASKS = """\
def init(address, **given):
    assert address == "auto"

def remote(**given):
    return lambda function: type("Task", (), {"remote": staticmethod(function)})

def get(answer, timeout):
    return answer
"""


class RayUp:
    """What ``ray up`` says and how it ends, time after time; the last answer holds from then on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        modules = {
            "__init__": TASKS,
            "scripts/scripts": SCRIPT,
            "autoscaler/_private/commands": "",
            "autoscaler/_private/updater": "",
        }
        for name, text in modules.items():
            path = directory / "ray" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self._num_answers = 0

    def answer(self, text: str, exit_code: int) -> None:
        (self._directory / f"answer-{self._num_answers:02}.{exit_code}").write_text(text)
        self._num_answers += 1

    @property
    def calls(self) -> list[str]:
        return (self._directory / "tries").read_text().splitlines()
