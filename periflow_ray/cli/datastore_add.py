"""``datastore create``, ``upload`` and ``edit``: datasets that begin or change."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from periflow_ray.cli.options import storage_option
from periflow_ray.cli.output import talk_console
from periflow_ray.errors import UsageError
from periflow_ray.store.backends import clouds
from periflow_ray.store.datasets import UploadProgress, edit_dataset, link_dataset, upload_dataset
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.size_text import format_size

_METADATA_PATH = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@click.option("-n", "--name", required=True, help="Name of the dataset.")
@click.option("-c", "--cloud", required=True, type=click.Choice(list(clouds())), help="Where the files are.")
@click.option("-r", "--region", help="Region of the bucket.")
@click.option("-s", "--storage-name", help="Bucket, or container in Azure; not for local.")
@click.option("-p", "--storage-path", default="", help="Path in the bucket; for local, a directory.")
@click.option("--credential", metavar="NAME", help="Credential to open the bucket with; see credential create.")
@click.option("-f", "--metadata-file", type=_METADATA_PATH, help="JSON file.")
@storage_option
def create(
    name: str,
    cloud: str,
    region: str | None,
    storage_name: str | None,
    storage_path: str,
    credential: str | None,
    metadata_file: Path | None,
    root: StorageRoot,
) -> None:
    """Link files that stay where they are.

    A bucket is opened with the credential of that name on the machine that reads it, else by the cloud's usual chain.

    \b
    Example:
      periflow-ray datastore create -n imagenet -c aws -r us-east-2 -s my-bucket -p imagenet/2012
    """
    metadata = None if metadata_file is None else _read_metadata(metadata_file)
    uri = _build_uri(cloud, storage_name, storage_path)
    dataset = link_dataset(root, name, uri, metadata, region=region, credential=credential)
    click.echo(f"Dataset '{name}' is linked to {dataset.uri}.", err=True)


@click.command()
@click.option("-n", "--name", required=True, help="Name of the dataset.")
@click.option(
    "-p", "--source-path", required=True, help="Directory or file; DIR/ uploads the directory's contents only."
)
@click.option("-f", "--metadata-file", type=_METADATA_PATH, help="JSON file.")
@storage_option
def upload(name: str, source_path: str, metadata_file: Path | None, root: StorageRoot) -> None:
    """Copy a directory or a file into the storage root; run it again to go on with an upload that was cut short.

    "-p ./cifar" gives the dataset a directory cifar; "-p ./cifar/" puts its contents at the top.

    \b
    Example:
      periflow-ray datastore upload -n my-cifar-100 -p ./cifar-100-python
    """
    metadata = None if metadata_file is None else _read_metadata(metadata_file)
    with _show_progress() as on_progress:
        dataset = upload_dataset(
            root,
            name,
            Path(source_path),
            contents_only=source_path.endswith("/"),
            metadata=metadata,
            on_progress=on_progress,
        )
    assert dataset.num_files is not None
    assert dataset.size_bytes is not None
    click.echo(f"Dataset '{name}' is uploaded: {dataset.num_files} files, {format_size(dataset.size_bytes)}.", err=True)


@click.command()
@click.argument("name")
@click.option("-n", "--name", "new_name", metavar="NAME", help="New name.")
@click.option("-r", "--region", help="Region of a linked bucket.")
@click.option("--credential", metavar="NAME", help="Credential to open a linked bucket with.")
@click.option("-f", "--metadata-file", type=_METADATA_PATH, help="JSON file; replaces the metadata.")
@storage_option
def edit(
    name: str,
    new_name: str | None,
    region: str | None,
    credential: str | None,
    metadata_file: Path | None,
    root: StorageRoot,
) -> None:
    """Change a dataset's name, metadata, region or credential.

    \b
    Example:
      periflow-ray datastore edit my-cifar-100 -n cifar-100 -f metadata.json
    """
    if new_name is None and region is None and credential is None and metadata_file is None:
        raise UsageError("nothing to change: give --name, --metadata-file, --region or --credential.")
    metadata = None if metadata_file is None else _read_metadata(metadata_file)
    dataset = edit_dataset(root, name, new_name=new_name, metadata=metadata, region=region, credential=credential)
    is_now = f" and is now '{dataset.name}'" if dataset.name != name else ""
    click.echo(f"Dataset '{name}' is changed{is_now}.", err=True)


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
        disable=not console.is_terminal,
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def show(phase: str, num_bytes: int, total_bytes: int) -> None:
        if phase not in tasks:
            tasks[phase] = progress.add_task(phase.capitalize(), total=total_bytes)
        progress.update(tasks[phase], completed=num_bytes, total=total_bytes)

    with progress:
        yield show


def _build_uri(cloud: str, storage_name: str | None, storage_path: str) -> str:
    backend = clouds()[cloud]
    if backend.is_local:
        if not storage_path:
            raise UsageError("--storage-path: give the directory that holds the files.")
        return str(Path(storage_path).absolute())
    if not storage_name:
        raise UsageError(f"--storage-name: give the bucket or container on {cloud}.")
    return f"{backend.schemes[0]}://{storage_name}/{storage_path.strip('/')}".rstrip("/")


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise UsageError(f"{path} is not valid JSON: {err}") from err
    if not isinstance(metadata, dict):
        raise UsageError(f'{path}: metadata must be a JSON object, such as {{"source": "..."}}.')
    return metadata
