"""``checkpoint``: checkpoints that jobs have saved or that came from elsewhere, listed and shown."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console

from periflow_ray.cli.complete import complete_checkpoint, complete_job
from periflow_ray.cli.file_tree import build_file_tree
from periflow_ray.cli.format import NOTHING, format_time, format_value, iso_time
from periflow_ray.cli.lazy import LazyGroup
from periflow_ray.cli.options import find_job, storage_option
from periflow_ray.cli.output import output_option, tell_empty, write_output
from periflow_ray.cli.plain_text import escape_cell
from periflow_ray.cli.tables import build_fields, draw_panels, draw_table
from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.jobs import read_record
from periflow_ray.jobs.checkpoint_status import CheckpointEntry, find_entry, list_all
from periflow_ray.store.checkpoints import latest_committed
from periflow_ray.store.checkpoints.manifest import Manifest, is_job_number
from periflow_ray.store.checkpoints.trash import purge
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.size_text import format_size

_NUM_METRICS_IN_LIST = 3

_COMMANDS = {
    "list": ("periflow_ray.cli.checkpoint:list_command", "List checkpoints."),
    "view": ("periflow_ray.cli.checkpoint:view", "Show a checkpoint: overview and files."),
    "download": (
        "periflow_ray.cli.checkpoint_transfer:download",
        "Copy a checkpoint's files to this machine, verified.",
    ),
    "upload": ("periflow_ray.cli.checkpoint_transfer:upload", "Make a checkpoint of a directory of this machine."),
    "create": ("periflow_ray.cli.checkpoint_transfer:create", "Make a checkpoint of files that stay where they are."),
    "delete": ("periflow_ray.cli.checkpoint_delete:delete", "Delete a checkpoint; for a week it can be undeleted."),
    "undelete": ("periflow_ray.cli.checkpoint_delete:undelete", "Take a deletion back."),
    "verify": ("periflow_ray.cli.checkpoint_transfer:verify_command", "Read every byte again and compare."),
}
_FORMER_NAMES = {"restore": "undelete"}


@click.group(cls=LazyGroup, lazy_commands=_COMMANDS, hidden_aliases=_FORMER_NAMES)
def checkpoint() -> None:
    """Checkpoints that jobs have saved or that came from elsewhere; a template names one under "checkpoint.input".

    An ID is JOB/NAME, or NAME for a checkpoint that no job made. Where a checkpoint is read, JOB alone is the
    latest of that job.

    \b
    Example:
      periflow-ray checkpoint list --job 12
      periflow-ray checkpoint download 12/step-00000400
    """


@click.command("list")
@click.option("--job", metavar="JOB", shell_complete=complete_job, help="Those of one job.")
@click.option(
    "-l", "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most this many checkpoints."
)
@click.option("-a", "--all", "shows_all", is_flag=True, help="All of them, partial and deleted ones, too.")
@storage_option
@output_option
def list_command(job: str | None, limit: int, shows_all: bool, root: StorageRoot, output: str) -> None:
    """List checkpoints, the newest job's and the last step first.

    Neither a partial one, which was not committed, nor a damaged one is used.

    \b
    Example:
      periflow-ray checkpoint list
      periflow-ray checkpoint list --job 12 --all -o json
    """
    entries = _list_entries(root, None if job is None else find_job(root, job))
    usable = [entry for entry in entries if shows_all or entry.status in ("committed", "uploading", "damaged")]
    shown = usable if shows_all else usable[:limit]

    def draw(console: Console) -> None:
        columns = ["ID", "Status", "Step", "Size", "Files", "Created", "Metrics"]
        rows = [_row(entry) for entry in shown]
        if any(_note(entry) for entry in shown):
            columns.append("Note")
            rows = [[*row, _note(entry) or NOTHING] for row, entry in zip(rows, shown, strict=True)]
        if shown:
            draw_table(console, columns, rows, text_column="Note", dropped_first=("Metrics", "Files", "Created"))

    write_output(output, [_document(entry) for entry in shown], draw)
    if not entries:
        tell_empty(root, "checkpoints", "pf.upload_checkpoint() in a job's script, or periflow-ray checkpoint upload")
    if num_older := len(usable) - len(shown):
        click.echo(f"{num_older} older ones are not shown. All of them: --all", err=True)
    if num_hidden := len(entries) - len(usable):
        click.echo(f"{num_hidden} partial or deleted ones are not shown. With them: --all", err=True)


@click.command()
@click.argument("checkpoint_id", metavar="ID", shell_complete=complete_checkpoint)
@storage_option
@output_option
def view(checkpoint_id: str, root: StorageRoot, output: str) -> None:
    """Show a checkpoint: overview, and its files with their sizes.

    \b
    Example:
      periflow-ray checkpoint view 12/step-00000400
      periflow-ray checkpoint view 12
    """
    entry = find_entry(root, resolve_id(root, checkpoint_id))
    files = entry.manifest.files if entry.manifest is not None else ()
    links = [one for one in entry.manifest.entries if one.link_to is not None] if entry.manifest is not None else []

    def draw(console: Console) -> None:
        panels: dict[str, Any] = {"Overview": build_fields(_overview(entry))}
        if files:
            # Where nodes' files of one name differ, the other nodes' stand below their node.
            sizes = {
                f"node-{file.node_rank}/{file.path}" if file.key.startswith("node-") else file.path: file.size
                for file in files
            }
            panels["Files"] = build_file_tree("/", sizes)
        if links:
            panels["Links"] = build_fields({escape_cell(link.path): link.link_to or "" for link in links})
        draw_panels(console, panels)

    document = {
        **_document(entry),
        **_manifest_document(entry.manifest),
        "files": [
            {
                "path": file.path,
                "size_bytes": file.size,
                "checksum": file.checksum,
                "node_rank": file.node_rank,
                "key": file.key,
            }
            for file in files
        ],
        "links": [{"path": link.path, "link_to": link.link_to, "node_rank": link.node_rank} for link in links],
    }
    write_output(output, document, draw)


def resolve_id(root: StorageRoot, checkpoint_id: str) -> str:
    """The ID as it is; for the number of a job, the ID of the job's latest committed checkpoint.

    Raises:
        NotFoundError: the job does not exist or has no committed checkpoint.
    """
    if not is_job_number(checkpoint_id):
        return checkpoint_id
    job_id = int(checkpoint_id)
    read_record(root, job_id)
    manifest = latest_committed(root, job_id)
    if manifest is None:
        raise NotFoundError(
            f"job {job_id} has no committed checkpoint. All of its checkpoints: periflow-ray checkpoint list "
            f"--job {job_id} --all"
        )
    return manifest.checkpoint_id


def _list_entries(root: StorageRoot, job_id: int | None) -> list[CheckpointEntry]:
    now_unix_s = time.time()
    owners: list[int | None]
    if job_id is not None:
        read_record(root, job_id)
        owners = [job_id]
    else:
        job_ids = [int(name) for name in root.list_names("jobs") if is_job_number(name)]
        owners = [*sorted(job_ids, reverse=True), None]
    entries: list[CheckpointEntry] = []
    for owner in owners:
        found = list_all(root, owner)
        kept = [entry for entry in found if not _is_over(entry, now_unix_s)]
        if len(kept) < len(found):
            # A user who may only read here still gets the list; someone else's listing will delete the files.
            with contextlib.suppress(OSError, StorageError):
                purge(root, owner, now_unix_s)
        entries += reversed(kept)
    return entries


def _is_over(entry: CheckpointEntry, now_unix_s: float) -> bool:
    return entry.restorable_until_unix_s is not None and entry.restorable_until_unix_s <= now_unix_s


def _row(entry: CheckpointEntry) -> list[str]:
    metrics = entry.metrics or {}
    shown = {name: metrics[name] for name in list(metrics)[:_NUM_METRICS_IN_LIST]}
    more = ", …" if len(metrics) > len(shown) else ""
    return [
        entry.checkpoint_id,
        entry.status,
        _format_number(entry.step),
        NOTHING if entry.size is None else format_size(entry.size),
        NOTHING if entry.manifest is None else str(len(entry.manifest.files)),
        format_time(entry.created_unix_s),
        (_format_metrics(shown) + more) or NOTHING,
    ]


def _note(entry: CheckpointEntry) -> str:
    if entry.restorable_until_unix_s is not None:
        return f"undelete until {format_time(entry.restorable_until_unix_s)}"
    return entry.reason or ""


def _overview(entry: CheckpointEntry) -> dict[str, str]:
    fields = {"ID": entry.checkpoint_id, "Status": entry.status, "Step": _format_number(entry.step)}
    if (manifest := entry.manifest) is not None:
        fields |= {
            "Attempt": str(manifest.attempt or NOTHING),
            "World size": str(manifest.world_size or NOTHING),
            "Nodes": str(manifest.num_nodes),
            "Size": format_size(manifest.size),
            "Files": str(len(manifest.files)),
            "Created": format_time(manifest.created_unix_s),
            "Created by": manifest.created_by or NOTHING,
            "Metrics": _format_metrics(manifest.metrics) or NOTHING,
        }
        if manifest.uri is not None:
            fields["Linked to"] = manifest.uri
    else:
        fields["Started"] = format_time(entry.created_unix_s)
    if entry.reason:
        fields["Reason"] = entry.reason
    if entry.restorable_until_unix_s is not None:
        fields["Undelete"] = f"until {format_time(entry.restorable_until_unix_s)}"
    return fields


def _document(entry: CheckpointEntry) -> dict[str, Any]:
    return {
        "id": entry.checkpoint_id,
        "job": entry.job_id,
        "status": entry.status,
        "step": entry.step,
        "size_bytes": entry.size,
        "num_files": None if entry.manifest is None else len(entry.manifest.files),
        "created": iso_time(entry.created_unix_s),
        "metrics": entry.metrics,
        "reason": entry.reason,
        "restorable_until": iso_time(entry.restorable_until_unix_s),
    }


def _manifest_document(manifest: Manifest | None) -> dict[str, Any]:
    names = ("attempt", "world_size", "num_nodes", "created_by", "uri", "credential")
    return {} if manifest is None else {name: getattr(manifest, name) for name in names}


def _format_number(number: int | None) -> str:
    return NOTHING if number is None else str(number)


def _format_metrics(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {format_value(value)}" for name, value in metrics.items())
