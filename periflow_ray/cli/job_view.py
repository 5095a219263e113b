"""``job view``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table

from periflow_ray.cli.account_view import (
    account_document,
    attempt_document,
    build_attempt_table,
    describe_account,
    read_account,
)
from periflow_ray.cli.environment_view import describe_environments, environment_document, list_packages
from periflow_ray.cli.format import NOTHING, format_duration, format_time, format_value, iso_time
from periflow_ray.cli.job_events import event_document
from periflow_ray.cli.job_table import format_progress, job_document, measure_duration_s
from periflow_ray.cli.options import job_argument, storage_option
from periflow_ray.cli.output import output_option, tell_left_out, write_output
from periflow_ray.cli.plain_text import escape_block, escape_cell
from periflow_ray.cli.tables import build_fields, draw_panels
from periflow_ray.errors import NotFoundError
from periflow_ray.jobs import Job, read_progress, read_record
from periflow_ray.jobs.environments import EnvironmentRecord, read_environments
from periflow_ray.jobs.events import Event, read_events
from periflow_ray.store.checkpoints import Manifest, list_committed
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.size_text import format_size

_NUM_LAST_EVENTS = 10
_NUM_NEWEST_CHECKPOINTS = 10


@click.command()
@job_argument
@click.option("--packages", "shows_packages", is_flag=True, help="Only the packages of its Python, one a line.")
@storage_option
@output_option
def view(job_id: int, root: StorageRoot, shows_packages: bool, output: str) -> None:
    """Show one job: overview with its error if it failed, attempts with what they cost, checkpoints, last events.

    Goodput is the share of the devices' time that made steps which no later attempt had to make again.

    \b
    Example:
      periflow-ray job view 3
      periflow-ray job view 3 -o json
      periflow-ray job view 3 --packages > requirements.txt
    """
    from periflow_ray.submit.jobs import check_state

    record = read_record(root, job_id)
    environments = read_environments(root, job_id, tell_left_out)
    if shows_packages:
        if not environments:
            raise NotFoundError(f"no command of job {job_id} has begun, so nothing is known of its Python yet.")
        listed = {"environments": [environment_document(each) for each in environments]}
        write_output(output, listed, lambda console: click.echo(list_packages(environments)))
        return
    job = Job(record, check_state(root, job_id), read_progress(root, job_id))
    checkpoints = list_committed(root, job_id)
    last_events = read_events(root, job_id)[-_NUM_LAST_EVENTS:]
    account = read_account(root, job, checkpoints[-1].step if checkpoints else 0)
    document = {
        **job_document(job),
        "attempts": [attempt_document(attempt) for attempt in account.attempts],
        "account": account_document(account),
        "checkpoints": [_checkpoint_document(checkpoint) for checkpoint in checkpoints],
        "events": [event_document(event) for event in last_events],
        "environments": [environment_document(each) for each in environments],
    }

    def draw(console: Console) -> None:
        panels: dict[str, RenderableType] = {"Overview": build_fields(_overview(job, environments))}
        if account.attempts:
            panels["Attempts"] = build_attempt_table(account)
            panels["Account"] = build_fields(describe_account(account))
        panels["Checkpoints"] = _build_checkpoint_table(job_id, checkpoints) if checkpoints else "No checkpoints."
        panels["Last events"] = _build_event_table(last_events) if last_events else "No events."
        draw_panels(console, panels)

    write_output(output, document, draw)


def _overview(job: Job, environments: Sequence[EnvironmentRecord]) -> dict[str, str]:
    record, state, progress = job.record, job.state, job.progress
    fields = {
        "Number": str(record.job_id),
        "Name": record.name or NOTHING,
        "Status": state.status,
        "VM": record.vm,
        "Nodes": f"{record.num_nodes} x {record.num_devices // max(1, record.num_nodes)} {record.accelerator}",
        "Experiment": record.experiment or NOTHING,
        "Data": record.dataset or NOTHING,
        **({"Python": describe_environments(environments)} if environments else {}),
        "Created by": record.created_by,
        "Created": format_time(record.created_unix_s),
        "Started": format_time(state.started_unix_s),
        "Ended": format_time(state.ended_unix_s),
        "Duration": format_duration(measure_duration_s(state)),
        "Attempt": str(state.attempt or NOTHING),
        "Progress": format_progress(progress),
    }
    if progress.metrics:
        fields["Metrics"] = ", ".join(
            f"{escape_cell(name)} {format_value(value)}" for name, value in progress.metrics.items()
        )
    if state.message:
        fields["Error" if state.status == "failed" else "Message"] = state.message
    return fields


def _build_checkpoint_table(job_id: int, checkpoints: Sequence[Manifest]) -> Group:
    table = Table(box=None, header_style="bold")
    for column in ("ID", "Step", "Size", "Created"):
        table.add_column(column, no_wrap=True)
    for checkpoint in checkpoints[-_NUM_NEWEST_CHECKPOINTS:]:
        created = format_time(checkpoint.created_unix_s)
        table.add_row(checkpoint.checkpoint_id, str(checkpoint.step), format_size(checkpoint.size), created)
    num_older = len(checkpoints) - _NUM_NEWEST_CHECKPOINTS
    older = [f" {num_older} older ones: periflow-ray checkpoint list --job {job_id} --all"] if num_older > 0 else []
    return Group(table, *older)


def _build_event_table(last_events: Sequence[Event]) -> Table:
    table = Table(box=None, show_header=False)
    for event in last_events:
        table.add_row(format_time(event.time_unix_s), escape_block(event.text))
    return table


def _checkpoint_document(checkpoint: Manifest) -> dict[str, Any]:
    return {
        "id": checkpoint.checkpoint_id,
        "step": checkpoint.step,
        "size_bytes": checkpoint.size,
        "created": iso_time(checkpoint.created_unix_s),
        "attempt": checkpoint.attempt,
        "num_files": len(checkpoint.files),
    }
