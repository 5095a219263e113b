"""``job events``."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from periflow_ray.cli.format import NOTHING, format_time, iso_time
from periflow_ray.cli.options import job_argument, storage_option
from periflow_ray.cli.output import output_option, write_output
from periflow_ray.cli.tables import draw_table
from periflow_ray.jobs import read_record
from periflow_ray.jobs.events import Event, read_events
from periflow_ray.store.root import StorageRoot


@click.command()
@job_argument
@storage_option
@output_option
def events(job_id: int, root: StorageRoot, output: str) -> None:
    """Show everything that happened to a job and when, with the attempt in which it happened.

    \b
    Example:
      periflow-ray job events 3
      periflow-ray job events 3 -o json
    """
    read_record(root, job_id)
    found = read_events(root, job_id)
    rows = [(format_time(e.time_unix_s), str(e.attempt or NOTHING), e.kind, e.text) for e in found]

    def draw(console: Console) -> None:
        draw_table(
            console,
            ("Time", "Attempt", "Kind", "Event"),
            rows,
            text_column="Event",
            dropped_first=("Kind", "Attempt"),
        )

    write_output(output, [event_document(event) for event in found], draw)


def event_document(event: Event) -> dict[str, Any]:
    """An event for programs."""
    return {"time": iso_time(event.time_unix_s), "attempt": event.attempt, "kind": event.kind, "text": event.text}
