"""Messages between a rank and its node's member: one JSON object a line over a Unix-domain socket.

Rank to member: hello, records (step, metrics, and where is_emergency_save was last asked), step (the answer to
                report), late (the announced step is over), checkpoint, bye.
Member to rank: report (say your step at once), announced (emergency step), checkpointed (an error text or null).
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

from periflow_ray.errors import PeriFlowError

PROTOCOL_VERSION = 1
# The member's version, for the script; a script's is in its hello.
VERSION_VARIABLE = "PERIFLOW_SESSION_VERSION"
# A thousand records of ordinary metrics take a tenth of it; the peer cuts off who sends longer lines.
MAX_MESSAGE_BYTES = 4 << 20


def require_same_version(member_version: str | None) -> None:
    """Refuse to speak to a member that means something else by these messages.

    Args:
        member_version: value of ``PERIFLOW_SESSION_VERSION``.
    Raises:
        PeriFlowError: it is another version than this one.
    """
    if member_version is not None and member_version != str(PROTOCOL_VERSION):
        raise PeriFlowError(
            f"the periflow-ray that this script imports speaks version {PROTOCOL_VERSION} with the job's node, and the "
            f"one that runs the job version {member_version}: steps and checkpoints would not be recorded. Let the "
            "script import the same periflow-ray that is installed on the cluster."
        )


def describe_other_version(rank: object, version: object) -> str | None:
    """What to say of a rank that speaks another version; None if it speaks this one."""
    if version == PROTOCOL_VERSION:
        return None
    return (
        f"rank {rank} imports a periflow-ray that speaks version {version} with the job's node, which speaks version "
        f"{PROTOCOL_VERSION}: its steps and checkpoints are not recorded. Let the script import the same periflow-ray "
        "that is installed on the cluster."
    )


def encode(kind: str, **fields: Any) -> bytes:
    """One message as a line of JSON."""
    return json.dumps({"kind": kind, **fields}, separators=(",", ":")).encode() + b"\n"


def read_messages(connection: socket.socket, *, is_strict: bool = False) -> Iterator[dict[str, Any]]:
    """Yield messages until the peer closes; a last line cut short by the peer's death is dropped.

    Args:
        is_strict: whether a line that is no message is an error; else it is dropped, too.
    Raises:
        ValueError: the peer does not speak this language.
    """
    buffered = b""
    while True:
        try:
            chunk = connection.recv(1 << 16)
        except OSError:
            return
        if not chunk:
            return
        *lines, buffered = (buffered + chunk).split(b"\n")
        if len(buffered) > MAX_MESSAGE_BYTES:
            # Neither kept nor skipped: there is no telling where the next message begins.
            if is_strict:
                raise ValueError(f"a message of more than {MAX_MESSAGE_BYTES >> 20} MiB")
            return
        for line in lines:
            try:
                message = json.loads(line)
            except (ValueError, RecursionError) as err:
                if is_strict:
                    raise ValueError(str(err)) from err
                continue
            if isinstance(message, dict):
                yield message
            elif is_strict:
                raise ValueError("not a JSON object")
