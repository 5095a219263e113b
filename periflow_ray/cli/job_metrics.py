"""``job metrics list`` and ``job metrics show``: tables, terminal plots and pictures of what ``pf.metric`` recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from periflow_ray.cli.complete import complete_metric
from periflow_ray.cli.format import format_time, format_value, iso_time
from periflow_ray.cli.lazy import LazyGroup
from periflow_ray.cli.options import job_argument, storage_option
from periflow_ray.cli.output import output_option, write_output
from periflow_ray.cli.picture import check_picture_path, write_picture
from periflow_ray.cli.plain_text import escape_cell
from periflow_ray.cli.plot import draw_plot
from periflow_ray.cli.series import Point, Series, build_series, thin_numbers
from periflow_ray.cli.tables import draw_table
from periflow_ray.errors import NotFoundError, UsageError
from periflow_ray.jobs import read_record
from periflow_ray.jobs.metrics import Metric, iterate_metrics
from periflow_ray.names import suggest_names
from periflow_ray.store.root import StorageRoot

_COMMANDS = {
    "list": ("periflow_ray.cli.job_metrics:list_command", "List the names of a job's metrics."),
    "show": ("periflow_ray.cli.job_metrics:show", "Show and plot values of a job's metrics."),
}
_MAX_PLOT_COLUMNS = 100


@click.group(cls=LazyGroup, lazy_commands=_COMMANDS)
def metrics() -> None:
    """List and plot a job's metrics.

    TensorBoard shows them too: periflow-ray job tensorboard

    \b
    Example:
      periflow-ray job metrics show 3 --name loss
    """


@click.command("list")
@job_argument
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True, help="Metrics of this rank.")
@storage_option
@output_option
def list_command(job_id: int, rank: int, root: StorageRoot, output: str) -> None:
    """List the names of a job's metrics with count, last value and last step.

    \b
    Example:
      periflow-ray job metrics list 3
    """
    read_record(root, job_id)
    series = build_series(iterate_metrics(root, job_id, rank=rank))
    documents = [
        {
            "name": entry.name,
            "count": len(entry.points),
            "last_value": entry.points[-1].value,
            "last_step": entry.points[-1].step,
        }
        for entry in series
    ]

    def draw(console: Console) -> None:
        rows = [(d["name"], str(d["count"]), format_value(d["last_value"]), str(d["last_step"])) for d in documents]
        if rows:
            draw_table(console, ("Name", "Count", "Last value", "Last step"), rows, dropped_first=("Count",))

    write_output(output, documents, draw)
    if not documents:
        click.echo(f"Job {job_id} has no metrics of rank {rank} yet. They come from pf.metric({{...}}).", err=True)


@click.command()
@job_argument
@click.option(
    "--name",
    "names",
    multiple=True,
    shell_complete=complete_metric,
    help="Name of a metric; repeatable.  [default: all]",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=10, show_default=True, help="How many last values per name."
)
@click.option("--rank", type=click.IntRange(min=0), help="Values of this rank.  [default: 0]")
@click.option("--all-ranks", is_flag=True, help="Values of every rank.")
@click.option("--plot", "picture_path", type=click.Path(path_type=Path, dir_okay=False), help="Write a .png or .html.")
@click.option(
    "--term-plot/--no-plot", "draws_plot", default=None, help="Plot in the terminal.  [default: if it is one]"
)
@storage_option
@output_option
def show(
    job_id: int,
    names: tuple[str, ...],
    limit: int,
    rank: int | None,
    all_ranks: bool,
    picture_path: Path | None,
    draws_plot: bool | None,
    root: StorageRoot,
    output: str,
) -> None:
    """Show the last values of a job's metrics by step, and plot all of them.

    \b
    Example:
      periflow-ray job metrics show 3 --name loss --name accuracy --limit 20
      periflow-ray job metrics show 3 --name loss --all-ranks --plot loss.png
    """
    if rank is not None and all_ranks:
        raise UsageError("--rank and --all-ranks exclude each other.")
    if picture_path is not None:
        check_picture_path(picture_path)
    read_record(root, job_id)
    found = _read_ranks(root, job_id, None if all_ranks else rank or 0)
    chosen = _check_names(names, list(dict.fromkeys(entry.name for entry in found)), job_id)
    series = [entry for name in chosen for entry in found if entry.name == name]
    last = [Series(entry.name, entry.rank, entry.points[-limit:]) for entry in series]

    def draw(console: Console) -> None:
        _draw_values(console, last, all_ranks)
        if console.is_terminal if draws_plot is None else draws_plot:
            for name in dict.fromkeys(entry.name for entry in series):
                _draw_in_terminal(console, name, [entry for entry in series if entry.name == name])

    write_output(output, [_series_document(entry) for entry in last], draw)
    if picture_path is not None:
        write_picture(picture_path, f"Job {job_id}", series)
        click.echo(f"Wrote {picture_path}.", err=True)


def _read_ranks(root: StorageRoot, job_id: int, rank: int | None) -> list[Series]:
    ranks: set[int] = set()

    def select() -> Iterator[Metric]:
        for metric in iterate_metrics(root, job_id, rank=None):
            ranks.add(metric.rank)
            if rank is None or metric.rank == rank:
                yield metric

    series = build_series(select())
    if not ranks:
        raise NotFoundError(f"job {job_id} has no metrics. They come from pf.metric({{...}}) in its script.")
    if rank is not None and rank not in ranks:
        raise NotFoundError(
            f"job {job_id} has no metrics of rank {rank}. Ranks that have some: {', '.join(map(str, sorted(ranks)))}. "
            "Try --all-ranks."
        )
    return series


def _check_names(names: Sequence[str], known: Sequence[str], job_id: int) -> list[str]:
    for name in names:
        if name not in known:
            suggestion = suggest_names(name, known, num_names=2, cutoff=0.5)
            raise NotFoundError(f"job {job_id} has no metric '{name}'.{suggestion} All: {', '.join(known)}")
    return list(dict.fromkeys(names)) or list(known)


def _draw_values(console: Console, series: Sequence[Series], all_ranks: bool) -> None:
    # A row per step and rank; a second one where a metric was recorded twice in a step.
    rows_by_place: dict[tuple[int, int], list[dict[str, Point]]] = {}
    for entry in series:
        for point in entry.points:
            rows = rows_by_place.setdefault((point.step, entry.rank), [])
            row = next((row for row in rows if entry.name not in row), None)
            if row is None:
                row = {}
                rows.append(row)
            row[entry.name] = point
    names = list(dict.fromkeys(entry.name for entry in series))
    cells = []
    for (step, rank), rows in sorted(rows_by_place.items()):
        for row in rows:
            values = [format_value(row[name].value) if name in row else "" for name in names]
            moment = format_time(min(point.time_unix_s for point in row.values()))
            cells.append([str(step), *([str(rank)] if all_ranks else []), moment, *values])
    draw_table(console, ["Step", *(["Rank"] if all_ranks else []), "Time", *names], cells, dropped_first=["Time"])


def _draw_in_terminal(console: Console, name: str, series: Sequence[Series]) -> None:
    num_columns = max(20, min(_MAX_PLOT_COLUMNS, console.width - 16))
    lines = [thin_numbers(entry.numbers(), 8 * num_columns) for entry in series]
    console.print()
    console.file.write(draw_plot(escape_cell(name), lines, num_columns=num_columns) + "\n")


def _series_document(series: Series) -> dict[str, Any]:
    return {
        "name": series.name,
        "rank": series.rank,
        "values": [
            {"step": point.step, "time": iso_time(point.time_unix_s), "value": point.value} for point in series.points
        ],
    }
