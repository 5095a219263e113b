"""The report that torchrun prints when a rank fails, found in a command's output. Pure text, no I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence

from periflow_ray.runtime.diagnosis import RANK_PREFIX, FailureReport

_LOG = re.compile(r"[IWEF]\d{4} \S+ \d+ \S*torch/distributed/")
_STACK = re.compile(
    r"^Traceback \(most recent call last\):\n(?: [^\n]*\n)+torch\.distributed\.elastic\.\S+\.ChildFailedError", re.M
)
_CAUSE = re.compile(
    r"Root Cause \(first observed failure\):.*?^\s*rank\s*: (\d+) \(local_rank.*?^\s*exitcode\s*: (-?\d+)", re.M | re.S
)


def read_torchrun_report(lines: Sequence[str]) -> FailureReport:
    """Torchrun's root cause, and the lines without torchrun's own; all lines where no torchrun has reported."""
    own = [line for line in lines if line.strip() and not _LOG.match(line)]
    report = "\n".join(own)
    cause = _CAUSE.search(report)
    if cause is None:
        return FailureReport(tuple(own))
    stack = _STACK.search(report)
    kept = report[: stack.start()].splitlines() if stack else own
    exit_code = int(cause[2])
    return FailureReport(
        lines=tuple(_leave_out_casualties(kept, cause_rank=cause[1])),
        rank=int(cause[1]),
        # Torchrun writes a signal as a negative exit code.
        exit_code=exit_code if exit_code >= 0 else None,
        signal=-exit_code if exit_code < 0 else None,
    )


def _leave_out_casualties(lines: Sequence[str], cause_rank: str) -> list[str]:
    """Without what other ranks say of their own end, where the rank that failed first has said something."""
    speakers = [match[1] if (match := RANK_PREFIX.match(line)) else None for line in lines]
    if cause_rank not in speakers:
        return list(lines)
    return [line for line, speaker in zip(lines, speakers, strict=True) if speaker in (None, cause_rank)]
