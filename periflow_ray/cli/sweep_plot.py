"""``sweep plot``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from periflow_ray.cli.choice import Choice
from periflow_ray.cli.options import storage_option, sweep_argument
from periflow_ray.cli.output import tell_left_out
from periflow_ray.cli.sweep_pictures import KINDS, SweepPicture, write_page, write_png
from periflow_ray.errors import UsageError
from periflow_ray.jobs import read_record
from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.sweeps.documents import read_sweep
from periflow_ray.sweeps.journal import read_trials

if TYPE_CHECKING:
    from periflow_ray.store.root import StorageRoot

# Reading the attempts of more trials takes longer than anybody looks at them.
_MAX_TRIALS_WITH_ATTEMPTS = 500


@click.command()
@sweep_argument
@click.option(
    "--path",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write: .html for a page with all pictures, .png for one of them.",
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=Choice(list(KINDS)),
    help="Which pictures.  [default: those with content]",
)
@storage_option
def plot(sweep_id: int, path: Path, kinds: tuple[str, ...], root: StorageRoot) -> None:
    """Draw a sweep: values over trials and over steps, parameters, what was stopped, copied or preempted when.

    \b
    Examples:
      periflow-ray sweep plot 3 --path sweep.html
      periflow-ray sweep plot 3 --path curves.png --kind curves
    """
    spec, trials = read_sweep(root, sweep_id), list(read_trials(root, sweep_id).values())
    if path.suffix not in (".html", ".png"):
        raise UsageError(f"--path: '{path}' must end in .html or .png.")
    if path.suffix == ".png" and len(kinds) != 1:
        raise UsageError("a PNG has one picture: give one --kind, or a --path that ends in .html.")
    if not trials:
        raise UsageError(f"no trial of sweep {sweep_id} has begun yet.")
    attempts = {}
    if len(trials) <= _MAX_TRIALS_WITH_ATTEMPTS:
        for trial in trials:
            attempts[trial.number] = [
                attempt for job_id in trial.job_ids for attempt in read_attempts(root, job_id, tell_left_out)
            ]
    name = read_record(root, sweep_id).name
    picture = SweepPicture(f"sweep {sweep_id}" + (f" ({name})" if name else ""), spec, trials, attempts)
    if path.suffix == ".png":
        write_png(path, kinds[0], picture)
    else:
        has_clones = any(trial.clones for trial in trials)
        write_page(path, kinds or [kind for kind in KINDS if kind != "lineage" or has_clones], picture)
    click.echo(f"Wrote {path}.", err=True)
