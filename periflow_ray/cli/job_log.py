"""``job log``: the last or first lines, everything into a file, or lines as they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from periflow_ray.cli.format import iso_time
from periflow_ray.cli.log_view import LogView
from periflow_ray.cli.options import job_argument, storage_option
from periflow_ray.cli.output import output_option, talk_console, write_output
from periflow_ray.errors import UsageError
from periflow_ray.jobs import JobRecord, read_record
from periflow_ray.jobs.logs import LogLine, iterate_logs, read_logs
from periflow_ray.store.root import StorageRoot

# So many are read at once; of more the log is read from its beginning, with few lines in memory.
_MAX_LAST_LINES = 100_000


@click.command()
@job_argument
@click.option(
    "-n",
    "--num-records",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="How many of the last lines; with --export-path the default is all.",
)
@click.option("-c", "--content", metavar="TEXT", help="Only lines that contain this text.")
@click.option("-m", "--machine", metavar="0,1", help="Only lines of these nodes, without the job's own lines.")
@click.option("--head", "is_head", is_flag=True, help="The first lines instead of the last.")
@click.option(
    "-e", "--export-path", type=click.Path(path_type=Path, dir_okay=False), help="Write the lines to this file."
)
@click.option("-f", "--follow", "is_following", is_flag=True, help="Go on with new lines until the job ends.")
@click.option("-t", "--timestamp", "shows_time", is_flag=True, help="Start each line with its local time.")
@click.option("--show-machine-id", "shows_node", is_flag=True, help="Name the node even if the job has only one.")
@storage_option
@output_option
@click.pass_context
def log(
    ctx: click.Context,
    job_id: int,
    num_records: int,
    content: str | None,
    machine: str | None,
    is_head: bool,
    export_path: Path | None,
    is_following: bool,
    shows_time: bool,
    shows_node: bool,
    root: StorageRoot,
    output: str,
) -> None:
    """Show, follow or export a job's log.

    Lines of a job on several nodes start with their node, the job's own lines with [job]. With --follow the exit code
    is 0 only if the job succeeds.

    \b
    Example:
      periflow-ray job log 3 -n 20
      periflow-ray job log 3 --follow
      periflow-ray job log 3 --machine 0 --content loss --export-path loss.log
    """
    if is_following and (is_head or export_path is not None or output != "table"):
        raise UsageError("--follow shows lines as they come: it cannot be used with --head, --export-path or --output.")
    record = read_record(root, job_id)
    node_ranks = None if machine is None else _parse_node_ranks(machine, record)
    view = LogView(node_ranks, content, shows_node or record.num_nodes > 1, shows_time)
    if is_following:
        from periflow_ray.cli.follow import follow_job, raise_unless_success

        state = follow_job(root, job_id, console=talk_console(), view=view, num_past_lines=num_records)
        raise_unless_success(root, job_id, state)
        return
    is_limited = export_path is None or ctx.get_parameter_source("num_records") is not ParameterSource.DEFAULT
    if is_limited and not is_head:
        lines: Iterable[LogLine] = _read_last(root, job_id, view, num_records)
    else:
        lines = islice(filter(view.selects, iterate_logs(root, job_id)), num_records if is_limited else None)
    if export_path is not None:
        num_lines = 0
        with export_path.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(f"{view.describe(line)}\n")
                num_lines += 1
        click.echo(f"Wrote {num_lines} lines to {export_path}.", err=True)
        return
    _write_lines(lines, view, output)


def _read_last(root: StorageRoot, job_id: int, view: LogView, num_lines: int) -> Sequence[LogLine]:
    """The last lines that are shown; a log may be much larger than what is asked for."""
    num_asked = max(1000, num_lines)
    while num_asked <= _MAX_LAST_LINES:
        found = read_logs(root, job_id, num_asked)
        selected = [line for line in found if view.selects(line)]
        if len(selected) >= num_lines or len(found) < num_asked:
            return selected[max(0, len(selected) - num_lines) :]
        # Lines with a certain text may be anywhere.
        num_asked *= 8
    return deque(filter(view.selects, iterate_logs(root, job_id)), maxlen=num_lines)


def _write_lines(lines: Iterable[LogLine], view: LogView, output: str) -> None:
    lines = list(lines)
    documents: list[dict[str, Any]] = [
        {"time": iso_time(line.time_unix_ms / 1000), "node": line.node_rank, "text": line.text} for line in lines
    ]

    def draw(console: Console) -> None:
        # Not through rich: a log line is shown with its own colours and its own width.
        for line in lines:
            console.file.write(view.describe(line) + "\n")

    write_output(output, documents, draw)


def _parse_node_ranks(given: str, record: JobRecord) -> frozenset[int]:
    node_ranks = set()
    for part in given.split(","):
        if not part.strip().isdecimal() or int(part) >= record.num_nodes:
            last = record.num_nodes - 1
            allowed = "only node 0" if last == 0 else f"nodes 0 to {last}"
            raise UsageError(f"--machine {given}: job {record.job_id} has {allowed}, got '{part.strip()}'.")
        node_ranks.add(int(part))
    return frozenset(node_ranks)
