"""``checkpoint delete`` and ``checkpoint undelete``."""

from __future__ import annotations

import time

import click

from periflow_ray.cli.complete import complete_checkpoint
from periflow_ray.cli.format import format_time
from periflow_ray.cli.options import confirm, storage_option, yes_option
from periflow_ray.errors import UsageError
from periflow_ray.jobs.checkpoint_status import CheckpointEntry, find_entry
from periflow_ray.store.checkpoints import destroy, latest_committed
from periflow_ray.store.checkpoints.trash import purge, trash, untrash
from periflow_ray.store.root import StorageRoot


@click.command()
@click.argument("checkpoint_id", metavar="ID", shell_complete=complete_checkpoint)
@yes_option
@storage_option
def delete(checkpoint_id: str, is_confirmed: bool, root: StorageRoot) -> None:
    """Delete a checkpoint. Its files stay for seven days, in which "undelete" takes the deletion back.

    The rest of a partial checkpoint is deleted at once.

    \b
    Example:
      periflow-ray checkpoint delete 12/step-00000400
    """
    entry = find_entry(root, checkpoint_id)
    if entry.status == "deleted":
        until = format_time(entry.restorable_until_unix_s)
        raise UsageError(f"checkpoint '{checkpoint_id}' is deleted already; it can be undeleted until {until}.")
    if entry.status == "uploading" and entry.job_id is not None:
        raise UsageError(
            f"checkpoint '{checkpoint_id}' is being uploaded by job {entry.job_id}; wait for it, or stop the job first."
        )
    if not is_confirmed:
        confirm(_describe_deletion(root, entry))
    if entry.status == "committed":
        until = format_time(trash(root, checkpoint_id))
        click.echo(
            f"Checkpoint '{checkpoint_id}' is deleted. Until {until} it can be undeleted: "
            f"periflow-ray checkpoint undelete {checkpoint_id}",
            err=True,
        )
    else:
        destroy(root, entry.job_id, entry.name)
        click.echo(f"Checkpoint '{checkpoint_id}' is deleted.", err=True)
    purge(root, entry.job_id, time.time())


@click.command()
@click.argument("checkpoint_id", metavar="ID", shell_complete=complete_checkpoint)
@storage_option
def undelete(checkpoint_id: str, root: StorageRoot) -> None:
    """Take the deletion of a checkpoint back, as long as "checkpoint list --all" shows it.

    \b
    Example:
      periflow-ray checkpoint undelete 12/step-00000400
    """
    manifest = untrash(root, checkpoint_id)
    click.echo(f"Checkpoint '{manifest.checkpoint_id}' is undeleted.", err=True)


def _describe_deletion(root: StorageRoot, entry: CheckpointEntry) -> str:
    question = f"Delete checkpoint '{entry.checkpoint_id}'?"
    if entry.status != "committed":
        return f"{question} It is {entry.status} and cannot be undeleted."
    if entry.manifest is not None and entry.manifest.uri is not None:
        return f"{question} Its files at {entry.manifest.uri} stay."
    if entry.job_id is not None:
        latest = latest_committed(root, entry.job_id)
        if latest is not None and latest.checkpoint == entry.name:
            return f"{question} It is the latest one of job {entry.job_id}, from which a restart would go on."
    return question
