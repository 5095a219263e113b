"""``datastore`` (later PeriFlow versions: ``dataset``): datasets that jobs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from periflow_ray.cli.format import NOTHING, format_size, iso_time
from periflow_ray.cli.lazy import LazyGroup
from periflow_ray.cli.options import storage_option, yes_option
from periflow_ray.cli.output import build_fields, draw_panels, draw_table, output_option, talk_console, write_output
from periflow_ray.cli.tree import build_file_tree
from periflow_ray.errors import UsageError
from periflow_ray.store.datasets import (
    Dataset,
    delete_dataset,
    link_dataset,
    list_dataset_files,
    list_datasets,
    read_dataset,
    upload_dataset,
)
from periflow_ray.store.root import StorageRoot

# What PeriFlow's -c accepted, and plain cloud names -> the scheme of the bucket's URI.
_SCHEMES = {
    "aws": "s3",
    "s3": "s3",
    "azure": "abfs",
    "azure-blob": "abfs",
    "gcp": "gs",
    "gcs": "gs",
    "local": "file",
}
_CLOUDS = {"s3": "aws", "s3a": "aws", "abfs": "azure", "abfss": "azure", "az": "azure", "gs": "gcp", "gcs": "gcp"}
_REGION_KEY = "region"

_COMMANDS = {
    "list": ("periflow_ray.cli.datastore:list_command", "List datasets."),
    "view": ("periflow_ray.cli.datastore:view", "Show a dataset: overview, files, metadata."),
    "create": ("periflow_ray.cli.datastore:create", "Link files that stay where they are."),
    "upload": ("periflow_ray.cli.datastore:upload", "Copy a directory or file into the storage root."),
    "delete": ("periflow_ray.cli.datastore:delete", "Delete a dataset; linked files stay."),
}


@click.group(cls=LazyGroup, lazy_commands=_COMMANDS)
def datastore() -> None:
    """Datasets that jobs read; a template names one under "data".

    \b
    Example:
      periflow-ray datastore upload -n my-cifar-100 -p ./cifar-100-python
      periflow-ray datastore view my-cifar-100
    """


@click.command("list")
@storage_option
@output_option
def list_command(root: StorageRoot, output: str) -> None:
    """List datasets.

    \b
    Example:
      periflow-ray datastore list
    """
    places = [_describe_place(root, dataset) for dataset in list_datasets(root)]

    def draw(console: Console) -> None:
        columns = ("Name", "Cloud", "Region", "Storage Name", "Active")
        draw_table(console, columns, [tuple(_overview(place).values()) for place in places])

    write_output(output, places, draw)


@click.command()
@click.argument("name")
@storage_option
@output_option
def view(name: str, root: StorageRoot, output: str) -> None:
    """Show a dataset: where it is, its files with sizes, its metadata.

    \b
    Example:
      periflow-ray datastore view my-cifar-100
    """
    dataset = read_dataset(root, name)
    sizes = list_dataset_files(root, dataset)
    place = _describe_place(root, dataset)
    files = [{"path": path, "size_bytes": size} for path, size in sizes.items()]

    def draw(console: Console) -> None:
        draw_panels(
            console,
            {
                "Overview": build_fields(_overview(place)),
                "Files": build_file_tree("/", sizes),
                "Metadata": json.dumps(dataset.metadata, indent=2, ensure_ascii=False),
            },
        )

    write_output(output, {**place, "files": files, "metadata": dataset.metadata}, draw)


@click.command()
@click.option("-n", "--name", required=True, help="Name of the dataset.")
@click.option("-c", "--cloud", required=True, type=click.Choice(list(_SCHEMES)), help="Where the files are.")
@click.option("-r", "--region", help="Region of the bucket.")
@click.option("-s", "--storage-name", help="Bucket, or container in Azure; not for local.")
@click.option("-p", "--storage-path", default="", help="Path in the bucket; for local, a directory.")
@click.option("-f", "--metadata-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="JSON file.")
@storage_option
def create(
    name: str,
    cloud: str,
    region: str | None,
    storage_name: str | None,
    storage_path: str,
    metadata_file: Path | None,
    root: StorageRoot,
) -> None:
    """Link files that stay where they are. Credentials are those of this shell and of the job's cluster.

    \b
    Example:
      periflow-ray datastore create -n imagenet -c aws -r us-east-2 -s my-bucket -p imagenet/2012
    """
    metadata = {} if metadata_file is None else _read_metadata(metadata_file)
    if region is not None:
        metadata.setdefault(_REGION_KEY, region)
    dataset = link_dataset(root, name, _build_uri(cloud, storage_name, storage_path), metadata)
    click.echo(f"Dataset '{name}' is linked to {dataset.uri}.", err=True)


@click.command()
@click.option("-n", "--name", required=True, help="Name of the dataset.")
@click.option(
    "-p", "--source-path", required=True, help="Directory or file; DIR/ uploads the directory's contents only."
)
@storage_option
def upload(name: str, source_path: str, root: StorageRoot) -> None:
    """Copy a directory or a file into the storage root.

    "-p ./cifar" gives the dataset a directory cifar; "-p ./cifar/" puts its contents at the top.

    \b
    Example:
      periflow-ray datastore upload -n my-cifar-100 -p ./cifar-100-python
    """
    console = talk_console()
    num_files = num_bytes = 0
    with console.status("Uploading") as status:

        def count(path: str, size: int) -> None:
            nonlocal num_files, num_bytes
            num_files += 1
            num_bytes += size
            status.update(f"Uploading: {num_files} files, {format_size(num_bytes)}")

        upload_dataset(root, name, Path(source_path), contents_only=source_path.endswith("/"), on_file=count)
    click.echo(f"Dataset '{name}' is uploaded: {num_files} files, {format_size(num_bytes)}.", err=True)


@click.command()
@click.argument("name")
@yes_option
@storage_option
def delete(name: str, is_confirmed: bool, root: StorageRoot) -> None:
    """Delete a dataset: uploaded files go, linked ones stay where they are.

    \b
    Example:
      periflow-ray datastore delete my-cifar-100
    """
    dataset = read_dataset(root, name)
    if not is_confirmed:
        fate = f"Its files at {dataset.uri} stay." if dataset.is_linked else "Its files are deleted."
        click.confirm(f"Delete dataset '{name}'? {fate}", abort=True, err=True)
    delete_dataset(root, name)
    click.echo(f"Dataset '{name}' is deleted.", err=True)


def _describe_place(root: StorageRoot, dataset: Dataset) -> dict[str, Any]:
    scheme, separator, rest = (dataset.uri if dataset.is_linked else root.uri).partition("://")
    is_bucket = bool(separator) and scheme in _CLOUDS
    return {
        "name": dataset.name,
        "cloud": _CLOUDS[scheme] if is_bucket else "local",
        "region": dataset.metadata.get(_REGION_KEY) if dataset.is_linked else None,
        "storage_name": rest.partition("/")[0] if is_bucket else None,
        "is_active": True,
        "is_linked": dataset.is_linked,
        "uri": dataset.uri,
        "created": iso_time(dataset.created_unix_s),
    }


def _overview(place: dict[str, Any]) -> dict[str, str]:
    return {
        "Name": place["name"],
        "Cloud": place["cloud"],
        "Region": str(place["region"] or NOTHING),
        "Storage Name": place["storage_name"] or NOTHING,
        "Active": "Y" if place["is_active"] else "N",
    }


def _build_uri(cloud: str, storage_name: str | None, storage_path: str) -> str:
    if _SCHEMES[cloud] == "file":
        if not storage_path:
            raise UsageError("--storage-path: give the directory that holds the files.")
        return str(Path(storage_path).absolute())
    if not storage_name:
        raise UsageError(f"--storage-name: give the bucket or container on {cloud}.")
    return f"{_SCHEMES[cloud]}://{storage_name}/{storage_path.strip('/')}".rstrip("/")


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise UsageError(f"{path} is not valid JSON: {err}") from err
    if not isinstance(metadata, dict):
        raise UsageError(f'{path}: metadata must be a JSON object, such as {{"source": "..."}}.')
    return metadata
