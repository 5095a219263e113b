"""Outside a job: metrics go to a file of JSON lines, checkpoints stay where the script wrote them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from periflow_ray.sdk.channel import Hello, MetricRecord


class LocalChannel:
    """Appends one JSON object per ``metric`` call; the file appears with the first metric."""

    def __init__(self, local_log_name: str | None) -> None:
        self._log_name = local_log_name
        self._log_path: Path | None = None
        self._hello: Hello | None = None

    def open(self, hello: Hello, on_announced_step: Callable[[int], bool], read_step: Callable[[], int]) -> None:
        self._hello = hello
        if self._log_name is not None:
            self._log_path = Path(self._log_name)
            return
        suffix = f"_{hello.rank}" if (hello.local_world_size or 1) > 1 or hello.rank > 0 else ""
        self._log_path = Path(f"periflow_trainer_{int(time.time())}{suffix}.log")

    def send(self, step: int, records: list[MetricRecord]) -> None:
        if not records or self._log_path is None or self._hello is None:
            return
        own = {"rank": self._hello.rank, "local_rank": self._hello.local_rank}
        lines = [json.dumps({"step": record.step, **own, **record.values}) for record in records]
        with self._log_path.open("a", encoding="utf-8") as log_file:
            log_file.write("\n".join(lines) + "\n")

    def save_checkpoint(self, step: int, replace_waiting: bool) -> None:
        """Nothing to do: there is no storage root outside a job."""

    def close(self) -> None:
        """Nothing is held open."""
