"""A member's session server alone: ``session_peer.py SOCKET``; asked anything it answers how many metrics came."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from periflow_ray.runtime.command_jobs.session_server import SessionServer

# As the member's reporter, which cannot be imported without Ray.
TAKE_INTERVAL_S = 0.2


def main() -> None:
    server = SessionServer(Path(sys.argv[1]), lambda step: None, lambda text: print(text, file=sys.stderr))
    server.start()
    counter = Counter(server)
    threading.Thread(target=counter.take_forever, daemon=True).start()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(counter.num_metrics, flush=True)
    server.close()


class Counter:
    """Takes the metrics away, as the member's reporter does."""

    def __init__(self, server: SessionServer) -> None:
        self.num_metrics = 0
        self._server = server
        self._tick = threading.Event()

    def take_forever(self) -> None:
        while not self._tick.wait(TAKE_INTERVAL_S):
            self.num_metrics += len(self._server.take_records().metrics)


if __name__ == "__main__":
    main()
