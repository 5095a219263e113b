"""Messages between a rank and its node agent: one JSON object a line over a Unix-domain socket.

Rank to agent:  hello, records (step and metrics), step (the answer to report), late (the announced step is over),
                checkpoint, bye.
Agent to rank:  report (say your step at once), announced (emergency step), checkpointed (an error text or null).
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

PROTOCOL_VERSION = 1


def encode(kind: str, **fields: Any) -> bytes:
    """One message as a line of JSON."""
    return json.dumps({"kind": kind, **fields}, separators=(",", ":")).encode() + b"\n"


def read_messages(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """Yield messages until the peer closes; a line that is none, or cut short by the peer's death, is dropped."""
    buffered = b""
    while True:
        try:
            chunk = connection.recv(1 << 16)
        except OSError:
            return
        if not chunk:
            return
        *lines, buffered = (buffered + chunk).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(message, dict):
                yield message
