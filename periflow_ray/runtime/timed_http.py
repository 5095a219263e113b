"""Answers of HTTP servers within one deadline, however slowly their pieces come, and of bounded size.

The timeout of a connection is for each of its pieces, and a server may send very many. Imports nothing heavy.
"""

from __future__ import annotations

import functools
import http.client
import io
import socket
import time
from typing import Any

MAX_ANSWER_BYTES = 64 << 10


def use_deadline(connection: http.client.HTTPConnection, deadline_s: float) -> None:
    """Let the connection's next answer, with its headers, come before a time of ``time.monotonic``.

    Reading it raises ``TimeoutError`` then, and ``AnswerTooLargeError`` beyond ``MAX_ANSWER_BYTES``.
    """
    # Its type is a class, and whatever is called like one will do.
    connection.response_class = functools.partial(_TimedResponse, deadline_s=deadline_s)  # type: ignore[assignment]


class AnswerTooLargeError(http.client.HTTPException):
    """An answer is larger than anybody asked for."""

    def __init__(self) -> None:
        super().__init__(f"more than {MAX_ANSWER_BYTES >> 10} KiB")


class _TimedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, deadline_s: float, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_TimedReader(self.fp.detach(), sock, deadline_s))


class _TimedReader(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline_s: float) -> None:
        self._raw = raw
        self._sock = sock
        self._deadline_s = deadline_s
        self._num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left_s)
        num_bytes: int | None = self._raw.readinto(buffer)
        self._num_bytes += num_bytes or 0
        if self._num_bytes > MAX_ANSWER_BYTES:
            raise AnswerTooLargeError
        return num_bytes

    def close(self) -> None:
        self._raw.close()
        super().close()
