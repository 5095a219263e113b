"""Outside a job: metrics go to a file of JSON lines, checkpoints stay where the script wrote them."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from periflow_ray.finite_json import dump_json
from periflow_ray.sdk.channel import Hello, MetricRecord

logger = logging.getLogger("periflow_ray")


class LocalChannel:
    """Appends one JSON object per ``metric`` call; the file appears with the first metric.

    A file that cannot be written is told once; the metrics of that time are missing in it.
    """

    def __init__(self, local_log_name: str | None) -> None:
        self._log_name = local_log_name
        self._log_path: Path | None = None
        self._hello: Hello | None = None
        self._started_unix_s = 0
        self._has_told = False
        self._may_be_torn = False

    def open(self, hello: Hello, on_announced_step: Callable[[int], bool], read_step: Callable[[], int]) -> None:
        self._started_unix_s = int(time.time())
        self.greet(hello)

    def greet(self, hello: Hello) -> None:
        self._hello = hello
        suffix = f"_{hello.rank}" if (hello.local_world_size or 1) > 1 or hello.rank > 0 else ""
        self._log_path = Path(self._log_name or f"periflow_trainer_{self._started_unix_s}{suffix}.log")
        with contextlib.suppress(OSError):  # There may be no working directory any more.
            # Now, because scripts may change their directory between two metrics.
            self._log_path = self._log_path.absolute()

    def send(self, step: int, records: list[MetricRecord], asked_step: int) -> None:
        if not records or self._log_path is None or self._hello is None:
            return
        own = {"rank": self._hello.rank, "local_rank": self._hello.local_rank}
        text = "".join(dump_json({"step": record.step, **own, **record.values}) + "\n" for record in records)
        try:
            self._append(self._log_path, text.encode())
        except OSError as err:
            self._may_be_torn = True
            if not self._has_told:
                self._has_told = True
                logger.warning(
                    "periflow-ray: metrics cannot be written to %s (%s). Training goes on without them.",
                    self._log_path,
                    err.strerror or err,
                )

    def _append(self, path: Path, lines: bytes) -> None:
        with path.open("a+b" if self._may_be_torn else "ab") as log_file:
            if self._may_be_torn and log_file.seek(0, os.SEEK_END) > 0:
                log_file.seek(-1, os.SEEK_END)
                # A line that a full disk cut short spoils itself only.
                lines = lines if log_file.read(1) == b"\n" else b"\n" + lines
            log_file.write(lines)
        self._may_be_torn = False

    def save_checkpoint(self, step: int, replace_waiting: bool) -> None:
        """Nothing to do: there is no storage root outside a job."""

    def close(self, has_failed: bool = False) -> None:
        """Nothing is held open."""
