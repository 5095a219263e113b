"""What users ask of a running job's driver, which looks for it about once a second.

jobs/<job>/requests/<Unix milliseconds>-<random>.json
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from periflow_ray.errors import DocumentError, NotFoundError, StorageError
from periflow_ray.store.documents import describe_key, parse_fields, write_document
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot

RequestKind = Literal["stop", "drill"]


@dataclass(frozen=True)
class Request:
    """One request.

    ``stop`` has the field ``timeout_s``: seconds that a save may take, 0 for none. ``drill`` has ``what`` (``notice``,
    ``kill_rank`` or ``kill_node``) and what that needs of ``notice_s``, ``node`` and ``rank``.
    """

    kind: RequestKind
    time_unix_s: float
    fields: Mapping[str, Any]


def post_request(root: StorageRoot, job_id: int, kind: RequestKind, **fields: Any) -> str:
    """Ask something of a job's driver; returns the request's key, which exists until the driver takes it."""
    now_unix_s = time.time()
    key = job_key(job_id, "requests", f"{round(now_unix_s * 1000):013}-{uuid.uuid4().hex[:8]}.json")
    write_document(root, key, {"kind": kind, "time_unix_s": now_unix_s, **fields}, kind=Request)
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


def _read_request(root: StorageRoot, key: str) -> Request | None:
    """None if it is damaged, or was withdrawn meanwhile."""
    try:
        content = root.read_bytes(key)
    except NotFoundError:
        return None
    return _parse_request(content, describe_key(root, key))


def _parse_request(content: bytes, where: str) -> Request | None:
    try:
        fields = parse_fields(content, where, kind=Request)
        kind, time_unix_s = fields.pop("kind"), float(fields.pop("time_unix_s"))
    except (DocumentError, ValueError, TypeError, KeyError) as err:
        # For the driver's log: whoever asked sees that the request was taken and nothing came of it.
        print(f"a request was not understood: {err if isinstance(err, DocumentError) else where}", file=sys.stderr)
        return None
    return Request(kind, time_unix_s, fields) if kind in get_args(RequestKind) else None
