"""``sweep list``, ``sweep view`` and ``sweep best``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from periflow_ray.cli.format import NOTHING, format_duration, format_time, iso_time
from periflow_ray.cli.options import storage_option, sweep_argument
from periflow_ray.cli.output import clear_screen, output_option, tell_empty, tell_left_out, write_output
from periflow_ray.cli.tables import draw_fields, draw_table
from periflow_ray.errors import UsageError
from periflow_ray.jobs import JobState, list_jobs, read_state
from periflow_ray.plan.trial import text_of
from periflow_ray.sweeps.cost import cost_of, usd_per_trial_hour
from periflow_ray.sweeps.documents import has_sweep, read_sweep
from periflow_ray.sweeps.journal import Trial, find_best, rank_trials, read_trials

if TYPE_CHECKING:
    from rich.console import Console

    from periflow_ray.plan import JobPlan
    from periflow_ray.spec import SweepSpec
    from periflow_ray.store.root import StorageRoot

_WATCH_INTERVAL_S = 2.0


@click.command("list")
@storage_option
@output_option
def list_command(root: StorageRoot, output: str) -> None:
    """List sweeps, newest first.

    \b
    Example:
      periflow-ray sweep list
    """
    rows, documents = [], []
    for job in list_jobs(root, tell_left_out):
        sweep_id = job.record.job_id
        if not has_sweep(root, sweep_id):
            continue
        spec, trials = read_sweep(root, sweep_id), read_trials(root, sweep_id)
        best = find_best(trials.values(), spec.mode)
        num_ended = sum(trial.is_final for trial in trials.values())
        value = None if best is None else best.best(spec.mode)
        shown = NOTHING if value is None else f"{value:g}"
        progress = f"{num_ended}/{spec.num_wanted}"
        started = format_time(job.state.started_unix_s)
        name = job.record.name or NOTHING
        rows.append((str(sweep_id), name, job.state.status, progress, spec.metric, shown, started))
        documents.append(
            {
                "number": sweep_id,
                "name": job.record.name,
                "status": job.state.status,
                "num_trials": spec.num_wanted,
                "num_ended": num_ended,
                "metric": spec.metric,
                "mode": spec.mode,
                "best": value,
                "best_trial": None if best is None else best.number,
                "created": iso_time(job.record.created_unix_s),
            }
        )
    columns = ("Number", "Name", "Status", "Trials", "Metric", "Best", "Start")
    dropped_first = ("Start", "Metric", "Best")

    def draw(console: Console) -> None:
        if rows:
            draw_table(console, columns, rows, dropped_first=dropped_first)

    write_output(output, documents, draw)
    if not rows:
        tell_empty(root, "sweeps", "periflow-ray sweep run --local -f pf-template.yml -d DIRECTORY --sweep sweep.yml")


@click.command()
@sweep_argument
@click.option("-n", "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most this many.")
@click.option("-a", "--all", "shows_all", is_flag=True, help="All trials.")
@click.option("--watch", is_flag=True, help="Show it again every two seconds until the sweep has ended.")
@storage_option
@output_option
def view(sweep_id: int, limit: int, shows_all: bool, watch: bool, root: StorageRoot, output: str) -> None:
    """The trials of a sweep, the best first; parameters that are the same in all trials are left out.

    \b
    Examples:
      periflow-ray sweep view 3 --watch
      periflow-ray sweep view 3 --all -o json
    """
    if watch and output != "table":
        raise UsageError("--watch is for people; it cannot be used with -o json or -o yaml.")
    while not _show(root, sweep_id, None if shows_all else limit, output) and watch:
        time.sleep(_WATCH_INTERVAL_S)
        clear_screen()


def _show(root: StorageRoot, sweep_id: int, limit: int | None, output: str) -> bool:
    """Show a sweep as it is now; whether it has ended."""
    spec, state = read_sweep(root, sweep_id), read_state(root, sweep_id)
    plan = _read_plan(root, sweep_id)
    trials = rank_trials(read_trials(root, sweep_id).values(), spec.mode)
    shown = trials if limit is None else trials[:limit]
    document = {
        "number": sweep_id,
        "status": state.status,
        "message": state.message,
        "metric": spec.metric,
        "mode": spec.mode,
        "num_trials": spec.num_wanted,
        "cost_usd": _round(cost_of(trials, plan, spec)),
        "trials": [
            {**trial_document(trial, spec), "cost_usd": _round(cost_of([trial], plan, spec))} for trial in shown
        ],
    }
    write_output(output, document, lambda console: _draw_trials(console, sweep_id, spec, state, trials, shown, plan))
    if len(shown) < len(trials):
        click.echo(f"{len(trials) - len(shown)} more: periflow-ray sweep view {sweep_id} --all", err=True)
    return state.has_ended


@click.command()
@sweep_argument
@click.option(
    "--template",
    "template_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write a pf-template.yml with these parameters, which starts from this checkpoint.",
)
@storage_option
@output_option
def best(sweep_id: int, template_path: Path | None, root: StorageRoot, output: str) -> None:
    """The best trial of a sweep so far: its parameters, its job and its newest checkpoint.

    \b
    Examples:
      periflow-ray sweep best 3 -o json
      periflow-ray sweep best 3 --template best.yml
    """
    from periflow_ray.store.checkpoints import latest_committed

    spec = read_sweep(root, sweep_id)
    trial = find_best(read_trials(root, sweep_id).values(), spec.mode)
    if trial is None:
        raise UsageError(f"no trial of sweep {sweep_id} has reported {spec.metric} yet.")
    newest = latest_committed(root, trial.job_ids[-1])
    checkpoint = None if newest is None else f"{newest.job_id}/{newest.checkpoint}"
    if template_path is not None:
        _write_template(root, sweep_id, trial, checkpoint, template_path)
    document = {**trial_document(trial, spec), "checkpoint": checkpoint}
    fields = {
        "Trial": str(trial.number),
        "Job": str(trial.job_ids[-1]),
        f"Best {spec.metric}": f"{trial.best(spec.mode):g}",
        "Status": trial.status,
        "Checkpoint": checkpoint or NOTHING,
        **{f"Parameter {name}": text_of(value) for name, value in trial.parameters.items()},
    }
    write_output(output, document, lambda console: draw_fields(console, fields))


def _write_template(root: StorageRoot, sweep_id: int, trial: Trial, checkpoint: str | None, path: Path) -> None:
    import yaml

    from periflow_ray.cli.sweep_template import build_template

    template = build_template(_read_plan(root, sweep_id), trial.parameters, checkpoint)
    path.write_text(yaml.safe_dump(template, sort_keys=False, allow_unicode=True, width=1000), encoding="utf-8")
    click.echo(f"Wrote {path}. Run it: periflow-ray submit -f {path} -d DIRECTORY", err=True)


def trial_document(trial: Trial, spec: SweepSpec) -> dict[str, Any]:
    """A trial for programs; times are ISO 8601, durations are seconds."""
    return {
        "trial": trial.number,
        "status": trial.status,
        "why": trial.why,
        "parameters": dict(trial.parameters),
        "best": trial.best(spec.mode),
        "last": trial.last,
        "step": trial.step,
        "jobs": list(trial.job_ids),
        "vm": trial.vm,
        "copied_from": [clone.checkpoint for clone in trial.clones],
        "attempts": trial.num_attempts,
        "began": iso_time(trial.began_unix_s),
        "ended": iso_time(trial.ended_unix_s),
        "duration_s": round(trial.duration_s, 3),
    }


def _draw_trials(
    console: Console,
    sweep_id: int,
    spec: SweepSpec,
    state: JobState,
    trials: Sequence[Trial],
    shown: Sequence[Trial],
    plan: JobPlan,
) -> None:
    num_ended = sum(trial.is_final for trial in trials)
    goal = "highest" if spec.mode == "max" else "lowest"
    console.print(
        f"Sweep {sweep_id}: {state.status}. {num_ended} of {spec.num_wanted} trials have ended. "
        f"Best: the {goal} {spec.metric}.",
        soft_wrap=True,
        markup=False,
    )
    if state.message:
        console.print(state.message, soft_wrap=True, markup=False)
    varying = [name for name in spec.parameters if len({repr(trial.parameters.get(name)) for trial in trials}) > 1]
    costs = () if usd_per_trial_hour(plan, spec) is None else ("Cost",)
    columns = ("Trial", *varying, "Best", "Last", "Step", "Status", "Job", "Starts", "Time", *costs, "Why")
    rows = []
    for trial in shown:
        rows.append(
            (
                str(trial.number),
                *(_show_value(trial.parameters.get(name)) for name in varying),
                _show_value(trial.best(spec.mode)),
                _show_value(trial.last),
                str(trial.step),
                trial.status,
                str(trial.job_ids[-1]) if trial.job_ids else NOTHING,
                NOTHING if trial.num_attempts is None else str(trial.num_attempts),
                format_duration(trial.duration_s),
                *(f"${cost:.2f}" for cost in [cost_of([trial], plan, spec)] if cost is not None),
                # The other lines, such as a traceback, are in the log of its job.
                next(iter((trial.why or "").splitlines()), NOTHING),
            )
        )
    # Rather fewer parameters than a list of lines for each trial, which nobody can compare.
    dropped_first = ("Why", "Starts", "Last", "Time", *costs, "Job", *reversed(varying))
    draw_table(console, columns, rows, text_column="Why", dropped_first=dropped_first)


def _read_plan(root: StorageRoot, sweep_id: int) -> JobPlan:
    from periflow_ray.plan import JobPlan
    from periflow_ray.store.documents import read_document
    from periflow_ray.store.keys import job_key

    return read_document(root, job_key(sweep_id, "plan.json"), JobPlan)


def _round(cost_usd: float | None) -> float | None:
    return None if cost_usd is None else round(cost_usd, 4)


def _show_value(value: Any) -> str:
    if value is None:
        return NOTHING
    return f"{value:.4g}" if isinstance(value, float) else text_of(value)
