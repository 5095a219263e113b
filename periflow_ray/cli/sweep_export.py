"""``sweep export``."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from periflow_ray.cli.options import storage_option, sweep_argument
from periflow_ray.cli.sweep_view import trial_document
from periflow_ray.errors import UsageError
from periflow_ray.finite_json import dump_json
from periflow_ray.sweeps.documents import read_sweep
from periflow_ray.sweeps.journal import rank_trials, read_trials

if TYPE_CHECKING:
    from periflow_ray.store.root import StorageRoot

_Rows = list[dict[str, Any]]


@click.command()
@sweep_argument
@click.option(
    "--path",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write; its ending says what: .csv, .parquet or .json.",
)
@storage_option
def export(sweep_id: int, path: Path, root: StorageRoot) -> None:
    """Write the trials of a sweep to a file, one row each, the best first.

    \b
    Examples:
      periflow-ray sweep export 3 --path trials.csv
      periflow-ray sweep export 3 --path trials.parquet
    """
    write = _WRITERS.get(path.suffix)
    if write is None:
        raise UsageError(f"--path: '{path}' ends in none of {', '.join(_WRITERS)}.")
    spec = read_sweep(root, sweep_id)
    trials = rank_trials(read_trials(root, sweep_id).values(), spec.mode)
    rows = []
    for trial in trials:
        document = trial_document(trial, spec)
        parameters: Mapping[str, Any] = document.pop("parameters")
        # The same columns in every row, also where a parameter is not used.
        named = {name: parameters.get(name) for name in spec.parameters}
        lists = {name: " ".join(map(str, document[name])) for name in ("jobs", "copied_from")}
        rows.append({"trial": document.pop("trial"), **named, **document, **lists})
    write(path, rows)
    click.echo(f"Wrote {len(rows)} trials to {path}.", err=True)


def _write_csv(path: Path, rows: _Rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["trial"])
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(path: Path, rows: _Rows) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _write_json(path: Path, rows: _Rows) -> None:
    path.write_text(dump_json(rows, indent=2) + "\n", encoding="utf-8")


_WRITERS: dict[str, Callable[[Path, _Rows], None]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".json": _write_json,
}
