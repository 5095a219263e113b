"""What failing commands print, and what the diagnosis makes of it."""

from __future__ import annotations

from periflow_ray.runtime.command_jobs.launchers.torchrun_report import read_torchrun_report
from periflow_ray.runtime.diagnosis import diagnose

MODULE_HINT = (
    "the Python module '{0}' is missing on the node. Name it in job_setting.python, or install it in the command "
    "(pip install ...)."
)
KILLED_HINT = (
    "somebody or something sent SIGKILL, often because the memory was full (its largest process used 0.0 GiB)."
)


def describe(text: str, *, exit_code: int | None = 1, signal_number: int | None = None, **facts: int) -> str:
    """The diagnosis of a command on node 0 that printed this text."""
    failure = diagnose(
        node_rank=0,
        exit_code=exit_code,
        signal_number=signal_number,
        report=read_torchrun_report(text.strip("\n").split("\n")),
        time_unix_s=1.0,
        **facts,
    )
    return failure.describe()


def raised(error: str, *frames: str) -> str:
    """A Python traceback that ends with this error."""
    source = frames or ("main()", "loss.backward()")
    calls = "".join(f'  File "main.py", line {number}, in f\n    {frame}\n' for number, frame in enumerate(source, 1))
    return f"Traceback (most recent call last):\n{calls}{error}"


def hint_of(description: str) -> str | None:
    lines = description.split("\n")
    return lines[1].removeprefix("Hint: ") if len(lines) > 1 and lines[1].startswith("Hint: ") else None
