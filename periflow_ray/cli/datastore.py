"""``datastore`` (later PeriFlow versions: ``dataset``): datasets that jobs read."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from periflow_ray.cli.complete import complete_dataset
from periflow_ray.cli.file_tree import build_file_tree
from periflow_ray.cli.format import NOTHING, iso_time
from periflow_ray.cli.lazy import LazyGroup
from periflow_ray.cli.options import confirm, storage_option, yes_option
from periflow_ray.cli.output import output_option, tell_empty, tell_left_out, write_output
from periflow_ray.cli.tables import build_fields, draw_panels, draw_table
from periflow_ray.finite_json import dump_json
from periflow_ray.store.backends import BACKENDS
from periflow_ray.store.backends.backend import scheme_of
from periflow_ray.store.datasets import (
    Dataset,
    delete_dataset,
    list_dataset_files,
    list_datasets,
    list_unfinished_uploads,
    read_dataset,
)
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.size_text import format_size

# A dataset of images may have a million files.
_MAX_TREE_LINES = 200

_COMMANDS = {
    "list": ("periflow_ray.cli.datastore:list_command", "List datasets."),
    "view": ("periflow_ray.cli.datastore:view", "Show a dataset: overview, files, metadata."),
    "create": ("periflow_ray.cli.datastore_create:create", "Link files that stay where they are."),
    "upload": ("periflow_ray.cli.datastore_upload:upload", "Copy a directory or file into the storage root."),
    "edit": ("periflow_ray.cli.datastore_edit:edit", "Change a dataset's name, metadata, region or credential."),
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
    """List datasets. One that is not active is being uploaded, or its upload was cut short.

    \b
    Example:
      periflow-ray datastore list
    """
    places = [_describe_place(root, dataset) for dataset in list_datasets(root, tell_left_out)]
    places += [_describe_unfinished(root, name) for name in list_unfinished_uploads(root)]
    places.sort(key=lambda place: str(place["name"]))

    def draw(console: Console) -> None:
        fields = [_overview(place) for place in places]
        if fields:
            dropped_first = ("Region", "Cloud", "Storage Name", "Files")
            draw_table(console, tuple(fields[0]), [tuple(row.values()) for row in fields], dropped_first=dropped_first)

    write_output(output, places, draw)
    if not places:
        tell_empty(root, "datasets", "periflow-ray datastore upload -n NAME -p DIRECTORY")


@click.command()
@click.argument("name", shell_complete=complete_dataset)
@storage_option
@output_option
def view(name: str, root: StorageRoot, output: str) -> None:
    """Show a dataset: where it is, its files with sizes, its metadata.

    \b
    Example:
      periflow-ray datastore view my-cifar-100
    """
    dataset = read_dataset(root, name)
    sizes = {file.path: file.size for file in list_dataset_files(root, dataset)}
    place = _describe_place(root, dataset)
    files = [{"path": path, "size_bytes": size} for path, size in sizes.items()]

    def draw(console: Console) -> None:
        draw_panels(
            console,
            {
                "Overview": build_fields(_overview(place)),
                "Files": build_file_tree("/", sizes, max_lines=_MAX_TREE_LINES),
                "Metadata": dump_json(dataset.metadata, indent=2, ensure_ascii=False),
            },
        )

    write_output(output, {**place, "files": files, "metadata": dataset.metadata}, draw)


@click.command()
@click.argument("name", shell_complete=complete_dataset)
@yes_option
@storage_option
def delete(name: str, is_confirmed: bool, root: StorageRoot) -> None:
    """Delete a dataset, or an upload that was cut short: uploaded files go, linked ones stay where they are.

    \b
    Example:
      periflow-ray datastore delete my-cifar-100
    """
    fate = "Its files are deleted."
    if name not in list_unfinished_uploads(root):
        dataset = read_dataset(root, name)
        fate = f"Its files at {dataset.uri} stay." if dataset.is_linked else fate
    if not is_confirmed:
        confirm(f"Delete dataset '{name}'? {fate}")
    delete_dataset(root, name)
    click.echo(f"Dataset '{name}' is deleted.", err=True)


def _describe_place(root: StorageRoot, dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        **_describe_uri(dataset.uri if dataset.is_linked else root.uri),
        "region": dataset.region,
        "is_active": True,
        "is_linked": dataset.is_linked,
        "uri": dataset.uri,
        "credential": dataset.credential,
        "num_files": dataset.num_files,
        "size_bytes": dataset.size_bytes,
        "created": iso_time(dataset.created_unix_s),
    }


def _describe_unfinished(root: StorageRoot, name: str) -> dict[str, Any]:
    return {
        "name": name,
        **_describe_uri(root.uri),
        "region": None,
        "is_active": False,
        "is_linked": False,
        "num_files": None,
        "size_bytes": None,
    }


def _describe_uri(uri: str) -> dict[str, Any]:
    # A dataset that an earlier version linked may be on storage that is unknown by now.
    backend = BACKENDS.get(scheme_of(uri))
    if backend is None or backend.is_local or not backend.clouds:
        return {"cloud": "local", "storage_name": None}
    return {"cloud": backend.clouds[0], "storage_name": uri.partition("://")[2].partition("/")[0]}


def _overview(place: dict[str, Any]) -> dict[str, str]:
    return {
        "Name": place["name"],
        "Cloud": place["cloud"],
        "Region": place["region"] or NOTHING,
        "Storage Name": place["storage_name"] or NOTHING,
        "Active": "Y" if place["is_active"] else "N",
        "Files": NOTHING if place["num_files"] is None else str(place["num_files"]),
        "Size": NOTHING if place["size_bytes"] is None else format_size(place["size_bytes"]),
    }
