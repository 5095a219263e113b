"""What a cluster's autoscaler waits for, and why, in words.

Ray's autoscaler reports that its provider refused a machine, but not why; the reason is in its log, on the head.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path

from periflow_ray.runtime.ray_private import LaunchFacts, read_launches

TIMEOUT_S = 5
# A refusal that is this old is no reason of a wait any more.
_REFUSAL_S = 120.0
MONITOR_LOG = Path("/tmp/ray/session_latest/logs/monitor.log")
_READ_BYTES = 256 << 10
_REFUSAL = re.compile(r"Failed to launch \d+ nodes of type (\S+): (.*)")
# As Ray and boto3 word it: a code, and a sentence.
_AWS_ERROR = re.compile(
    r"(?:Node Launch Exception \(([\w.]+)\)|An error occurred \(([\w.]+)\)[^:(]*(?:\([^)]*\))?): (.*)"
)
_CODE = re.compile(r"\b(\w*(?:Capacity|Quota|LimitExceeded|NotAvailable|NotAllowed|Unsupported|Unauthorized)\w*)\b")
_MAX_REASON_CHARS = 300


def describe_launches(gcs_address: str) -> list[str]:
    """Sentences about the machines that are on their way, or were refused of late; none where it is not known."""
    try:
        facts = read_launches(gcs_address, TIMEOUT_S)
    except Exception:  # Ray raises classes that have nothing in common; the next look may find its head again.
        return []
    return describe(facts, read_refusals(), refused_since_unix_s=time.time() - _REFUSAL_S)


def describe(facts: LaunchFacts, reasons: Mapping[str, str], *, refused_since_unix_s: float) -> list[str]:
    """The sentences for what was read; ``reasons`` are of the last refusal of each node type."""
    lines = [
        f"{count} x {name}: launching since {time.strftime('%H:%M:%S', time.gmtime(since))} UTC"
        for name, (count, since) in facts.requested.items()
    ]
    lines += [f"{count} x {name}: there, and being set up" for name, count in facts.installing.items()]
    for name, refused in facts.refused_unix_s.items():
        if refused >= refused_since_unix_s:
            reason = reasons.get(name, "its log on the head says why: periflow-ray cluster logs NAME")
            lines.append(f"{name}: the provider refused it: {reason}")
    return lines


def read_refusals(log_path: Path = MONITOR_LOG) -> dict[str, str]:
    """Why the provider last refused each node type, from the end of the autoscaler's log; empty elsewhere."""
    try:
        with open(log_path, "rb") as file:
            file.seek(max(0, log_path.stat().st_size - _READ_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return {}
    return {match[1]: shorten_refusal(match[2]) for match in _REFUSAL.finditer(text)}


def shorten_refusal(text: str) -> str:
    """A refusal by its code and its sentence, where there is a code in it."""
    if found := _AWS_ERROR.search(text):
        return f"{found[1] or found[2]}: {found[3]}"[:_MAX_REASON_CHARS]
    if (found := _CODE.search(text)) and found.start() > 0:
        return f"{found[1]}: {text}"[:_MAX_REASON_CHARS]
    return text[:_MAX_REASON_CHARS]
