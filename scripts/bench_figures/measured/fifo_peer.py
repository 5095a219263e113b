"""The other end of PeriFlow SDK 0.1.2's cloud mode: ``fifo_peer.py LOCAL_RANK``.

Acknowledges every step at once and throws everything else away, which flatters that SDK.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import struct
import sys

PURPOSES = ("step_info", "metric", "ack", "emergency_save", "last_step", "ckpt")
CHUNK_BYTES = 1 << 16


def main() -> None:
    paths = {purpose: f"/tmp/periflow_{purpose}_ipc_fifo_{sys.argv[1]}" for purpose in PURPOSES}
    for path in paths.values():
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path)
    try:
        # Read and write, so that opening waits for nobody.
        serve({purpose: os.open(path, os.O_RDWR) for purpose, path in paths.items()})
    finally:
        for path in paths.values():
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)


def serve(fifos: dict[str, int]) -> None:
    text = json.dumps({"status": "SUCCESS"}).encode()
    acknowledgement = struct.pack("<I", len(text)) + text
    poll = select.poll()
    for source in (0, fifos["step_info"], fifos["metric"], fifos["last_step"], fifos["ckpt"]):
        poll.register(source, select.POLLIN)
    print("ready", flush=True)
    while True:
        for source, _ in poll.poll():
            content = os.read(source, CHUNK_BYTES)
            if source == 0 and not content:
                return
            if source == fifos["step_info"]:
                # A rank waits for the answer to each step, so there is one message at a time.
                os.write(fifos["ack"], acknowledgement)


if __name__ == "__main__":
    main()
