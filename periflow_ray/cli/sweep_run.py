"""``sweep run``."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from periflow_ray.cli.options import storage_option, yes_option
from periflow_ray.cli.output import talk_console, write_output
from periflow_ray.cli.submission import Submission
from periflow_ray.cli.submission_options import SubmissionOptions, submission_options
from periflow_ray.errors import TemplateError, UsageError
from periflow_ray.plan.trial import require_share, text_of

if TYPE_CHECKING:
    from rich.console import Console

    from periflow_ray.plan import JobPlan
    from periflow_ray.spec import SweepSpec, Template
    from periflow_ray.store.root import StorageRoot

_NUM_SHOWN = 5
_NAME = re.compile(r"\$(?:{(\w+)}|(\w+))")
# Files of a workspace that may read a parameter from their environment.
_SOURCES = (".py", ".sh", ".yml", ".yaml", ".toml", ".json", ".ini", ".cfg")
_MAX_SOURCE_BYTES = 1 << 20


@click.command()
@submission_options
@click.option(
    "--sweep",
    "sweep_file",
    type=click.Path(path_type=Path),
    help="What to search for.  [default: the template's section sweep]",
)
@click.option("--dry-run", is_flag=True, help="Show the first trials' commands and what they cost, and do nothing.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Tell of each trial until the sweep ends.")
@yes_option
@storage_option
def run(
    root: StorageRoot,
    given: SubmissionOptions,
    sweep_file: Path | None,
    dry_run: bool,
    follow: bool,
    is_confirmed: bool,
) -> None:
    """Run many trials of a template with different hyperparameters, and find the best.

    Each trial is a job with its own number, log and checkpoints. A parameter is in the command as ${name}, in the
    environment, and in pf.hparams(). The exit code is 0 only if a best trial was found.

    \b
    Examples:
      periflow-ray sweep run --local -f pf-template.yml --sweep sweep.yml -d ./digits
      periflow-ray sweep run --dry-run -f pf-template.yml --sweep sweep.yml
    """
    submission = Submission(root, given)
    spec = _read_sweep(sweep_file, submission.template)
    require_share(submission.plan, spec.resources.device)
    _require_used(spec, submission.plan, given.workspace_dir)
    if dry_run:
        submission.check()
        write_output("table", None, lambda console: _show(console, submission.plan, spec))
        return
    record = submission.start(is_confirmed=is_confirmed, sweep=spec)
    talk = talk_console()
    click.echo(f"Sweep ({record.job_id}) started successfully.")
    talk.print(f"Trials: periflow-ray sweep view {record.job_id}    Stop: periflow-ray sweep stop {record.job_id}")
    if follow:
        from periflow_ray.cli.follow import follow_job, raise_unless_success

        raise_unless_success(root, record.job_id, follow_job(root, record.job_id, console=talk))
        talk.print(f"Sweep ({record.job_id}) succeeded. The best: periflow-ray sweep best {record.job_id}")


def _read_sweep(path: Path | None, template: Template) -> SweepSpec:
    from periflow_ray.spec import load_sweep

    if path is not None:
        try:
            text = path.read_bytes()
        except OSError as err:
            raise UsageError(f"cannot read the sweep '{path}': {err.strerror or err}") from err
        return load_sweep(text, source=str(path))
    if template.spec.sweep is None:
        raise UsageError(
            f"there is nothing to search for: give --sweep FILE, or the template '{template.source}' a section 'sweep'."
        )
    return template.spec.sweep


def _require_used(spec: SweepSpec, plan: JobPlan, workspace_dir: Path | None) -> None:
    """Refuse parameters that nothing reads: their trials would all be the same."""
    unused = [name for name in spec.parameters if not re.search(rf"\$(?:{name}\b|{{{name}\b)", plan.command)]
    if not unused or workspace_dir is None:
        _refuse_unused(unused)
        return
    for path in sorted(workspace_dir.rglob("*")):
        if not unused:
            return
        if path.suffix in _SOURCES and path.is_file() and path.stat().st_size <= _MAX_SOURCE_BYTES:
            text = path.read_text(encoding="utf-8", errors="replace")
            if re.search(r"\bhparams\s*\(", text):
                return
            unused = [name for name in unused if not re.search(rf"[\"'${{]{name}\b", text)]
    _refuse_unused(unused)


def _refuse_unused(names: list[str]) -> None:
    if names:
        raise TemplateError(
            f"nothing uses {', '.join(names)}. Put ${{{names[0]}}} into the command, such as "
            f"'python main.py --{names[0].replace('_', '-')} ${{{names[0]}}}', or read pf.hparams() in the script."
        )


def _show(console: Console, plan: JobPlan, spec: SweepSpec) -> None:
    from periflow_ray.sweeps.cost import usd_per_trial_hour
    from periflow_ray.sweeps.space import draw_trials

    methods = f"search {spec.search.name}, scheduler {spec.scheduler.name}"
    console.print(f"{spec.num_wanted} trials, {methods}", soft_wrap=True)
    for number, parameters in enumerate(itertools.islice(draw_trials(spec), min(_NUM_SHOWN, spec.num_wanted)), start=1):
        command = _NAME.sub(lambda found: _fill_in(found, parameters), plan.command)  # noqa: B023
        console.print(f"Trial {number}: {command}", soft_wrap=True)
    per_hour = usd_per_trial_hour(plan, spec)
    if per_hour is not None:
        at_once = f", at most {spec.max_concurrent} at a time" if spec.max_concurrent else ""
        ceiling = f"; the sweep ends at ${spec.max_cost:g}" if spec.max_cost else "; no limit is set (max_cost)"
        console.print(f"Price: ${per_hour:.2f} per hour and trial{at_once}{ceiling}", soft_wrap=True)


def _fill_in(found: re.Match[str], parameters: dict[str, Any]) -> str:
    name = found[1] or found[2]
    return text_of(parameters[name]) if name in parameters else found[0]
