"""On Python's path: moves the clock of one machine's Python programs by the seconds in ``$RAY_TMPDIR/clock-offset``."""

import contextlib
import os
import time

_READ_EVERY_S = 0.2
_real_time = time.time
_path = os.path.join(os.environ.get("RAY_TMPDIR", "/nonexistent"), "clock-offset")
_offset_s, _next_read_s = 0.0, 0.0


def _moved_time() -> float:
    global _offset_s, _next_read_s
    now_s = time.monotonic()
    if now_s >= _next_read_s:
        _next_read_s = now_s + _READ_EVERY_S
        with contextlib.suppress(OSError, ValueError), open(_path) as file:
            _offset_s = float(file.read())
    return _real_time() + _offset_s


time.time = _moved_time
time.time_ns = lambda: int(_moved_time() * 1e9)
