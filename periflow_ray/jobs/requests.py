"""What users ask of a running job's driver, which looks for it about once a second.

jobs/<job>/requests/<Unix milliseconds>-<random>.json
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from periflow_ray.errors import DocumentError, NewerFormatError, NotFoundError, StorageError
from periflow_ray.store.documents import describe_key, parse_fields, write_document
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot


@dataclass(frozen=True)
class StopRequest:
    """End the job, with a save that may take this long; 0 saves nothing."""

    timeout_s: float


@dataclass(frozen=True)
class NoticeDrill:
    """Rehearse that a node is taken away with notice."""

    node_rank: int
    notice_s: float


@dataclass(frozen=True)
class KillRankDrill:
    """Rehearse that the process of a rank dies."""

    rank: int


@dataclass(frozen=True)
class KillNodeDrill:
    """Rehearse that everything of the job on a node dies."""

    node_rank: int


@dataclass(frozen=True)
class UnknownRequest:
    """A request that this version does not know, or that lacks what it needs; ``text`` says which."""

    text: str


Drill = NoticeDrill | KillRankDrill | KillNodeDrill
Request = StopRequest | Drill | UnknownRequest


def post_request(root: StorageRoot, job_id: int, request: StopRequest | Drill) -> str:
    """Ask something of a job's driver; returns the request's key, which exists until the driver takes it."""
    now_unix_s = time.time()
    key = job_key(job_id, "requests", f"{round(now_unix_s * 1000):013}-{uuid.uuid4().hex[:8]}.json")
    write_document(root, key, {"time_unix_s": now_unix_s, **describe_request(request)}, kind=type(request))
    return key


def take_requests(root: StorageRoot, job_id: int) -> list[Request]:
    """What was asked since the last call, oldest first; each is deleted and so given once.

    A damaged request is deleted and left out; one of a format that this version does not know, too.

    Raises:
        StorageError, OSError: the root could not be read; whatever is still there comes with a later call.
    """
    prefix = job_key(job_id, "requests")
    taken: list[Request] = []
    for name in root.list_names(prefix):
        key = f"{prefix}/{name}"
        try:
            request = _read_request(root, key)
            root.delete(key)
        except (StorageError, OSError):
            if not taken:
                raise
            return taken
        if request is not None:
            taken.append(request)
    return taken


def withdraw_request(root: StorageRoot, key: str) -> bool:
    """Take back a request; False if the driver has it already."""
    was_waiting = root.exists(key)
    root.delete(key)
    return was_waiting


def clear_requests(root: StorageRoot, job_id: int) -> None:
    """Forget what was asked of a driver that has ended."""
    root.delete(job_key(job_id, "requests"))


def describe_request(request: StopRequest | Drill) -> dict[str, Any]:
    """A request as it is stored: its tag, and what it needs."""
    match request:
        case StopRequest(timeout_s):
            return {"kind": "stop", "timeout_s": timeout_s}
        case NoticeDrill(node_rank, notice_s):
            return {"kind": "drill", "what": "notice", "node": node_rank, "notice_s": notice_s}
        case KillRankDrill(rank):
            return {"kind": "drill", "what": "kill_rank", "rank": rank}
        case KillNodeDrill(node_rank):
            return {"kind": "drill", "what": "kill_node", "node": node_rank}


def parse_request(fields: Mapping[str, Any]) -> Request:
    """A stored request; one of a kind that came with a later version is never taken for another."""
    tag = " ".join(str(fields[name]) for name in ("kind", "what") if name in fields)
    try:
        match tag:
            case "stop":
                return StopRequest(float(fields["timeout_s"]))
            case "drill notice":
                return NoticeDrill(int(fields["node"]), float(fields["notice_s"]))
            case "drill kill_rank":
                return KillRankDrill(int(fields["rank"]))
            case "drill kill_node":
                return KillNodeDrill(int(fields["node"]))
    except KeyError as err:
        return UnknownRequest(f"'{tag}' without {err}")
    except (TypeError, ValueError) as err:
        return UnknownRequest(f"'{tag}' ({err})")
    return UnknownRequest(f"'{tag}'")


def _read_request(root: StorageRoot, key: str) -> Request | None:
    """None if it is damaged, or was withdrawn meanwhile."""
    try:
        return parse_request(parse_fields(root.read_bytes(key), describe_key(root, key)))
    except NotFoundError:
        return None
    except NewerFormatError as err:
        return UnknownRequest(str(err))
    except DocumentError as err:
        # For the driver's log: whoever asked sees that the request was taken and nothing came of it.
        print(f"a request was not understood: {err}", file=sys.stderr)
        return None
