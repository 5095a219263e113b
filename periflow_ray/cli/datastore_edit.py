"""``datastore edit``."""

from __future__ import annotations

from pathlib import Path

import click

from periflow_ray.cli.complete import complete_credential, complete_dataset
from periflow_ray.cli.dataset_metadata import metadata_file_option, read_metadata
from periflow_ray.cli.options import storage_option
from periflow_ray.errors import UsageError
from periflow_ray.store.datasets import edit_dataset
from periflow_ray.store.root import StorageRoot


@click.command()
@click.argument("name", shell_complete=complete_dataset)
@click.option("-n", "--name", "new_name", metavar="NAME", help="New name.")
@click.option("-r", "--region", help="Region of a linked bucket.")
@click.option(
    "--credential", shell_complete=complete_credential, metavar="NAME", help="Credential to open a linked bucket with."
)
@metadata_file_option("JSON file; replaces the metadata.")
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
    metadata = None if metadata_file is None else read_metadata(metadata_file)
    dataset = edit_dataset(root, name, new_name=new_name, metadata=metadata, region=region, credential=credential)
    is_now = f" and is now '{dataset.name}'" if dataset.name != name else ""
    click.echo(f"Dataset '{name}' is changed{is_now}.", err=True)
