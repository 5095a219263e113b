"""``datastore upload``: a dataset of files that are copied into the storage root."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from periflow_ray.cli.complete import complete_file
from periflow_ray.cli.dataset_metadata import metadata_file_option, read_metadata
from periflow_ray.cli.options import storage_option
from periflow_ray.cli.output import is_drawable, talk_console, tell_skipped
from periflow_ray.store.datasets import UploadProgress, upload_dataset
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.size_text import format_size


@click.command()
@click.option("-n", "--name", required=True, help="Name of the dataset.")
@click.option(
    "-p",
    "--source-path",
    required=True,
    shell_complete=complete_file,
    help="Directory or file; DIR/ uploads the directory's contents only.",
)
@metadata_file_option()
@storage_option
def upload(name: str, source_path: str, metadata_file: Path | None, root: StorageRoot) -> None:
    """Copy a directory or a file into the storage root; run it again to go on with an upload that was cut short.

    "-p ./cifar" gives the dataset a directory cifar; "-p ./cifar/" puts its contents at the top.

    \b
    Example:
      periflow-ray datastore upload -n my-cifar-100 -p ./cifar-100-python
    """
    metadata = None if metadata_file is None else read_metadata(metadata_file)
    with _show_progress() as on_progress:
        dataset = upload_dataset(
            root,
            name,
            Path(source_path),
            contents_only=source_path.endswith("/"),
            metadata=metadata,
            on_progress=on_progress,
            on_skipped=tell_skipped,
        )
    assert dataset.num_files is not None
    assert dataset.size_bytes is not None
    click.echo(f"Dataset '{name}' is uploaded: {dataset.num_files} files, {format_size(dataset.size_bytes)}.", err=True)


@contextlib.contextmanager
def _show_progress() -> Iterator[UploadProgress]:
    """A bar for reading and one for uploading, on a terminal only."""
    console = talk_console()
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not is_drawable(console),
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def show(phase: str, num_bytes: int, total_bytes: int) -> None:
        if phase not in tasks:
            tasks[phase] = progress.add_task(phase.capitalize(), total=total_bytes)
        progress.update(tasks[phase], completed=num_bytes, total=total_bytes)

    with progress:
        yield show
