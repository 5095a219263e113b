"""``datastore create``: a dataset of files that stay where they are."""

from __future__ import annotations

from pathlib import Path

import click

from periflow_ray.cli.choice import Choice
from periflow_ray.cli.complete import complete_credential, complete_file
from periflow_ray.cli.dataset_metadata import metadata_file_option, read_metadata
from periflow_ray.cli.options import storage_option
from periflow_ray.errors import UsageError
from periflow_ray.store.backends import clouds
from periflow_ray.store.datasets import link_dataset
from periflow_ray.store.root import StorageRoot


@click.command()
@click.option("-n", "--name", required=True, help="Name of the dataset.")
@click.option("-c", "--cloud", required=True, type=Choice(list(clouds())), help="Where the files are.")
@click.option("-r", "--region", help="Region of the bucket.")
@click.option("-s", "--storage-name", help="Bucket, or container in Azure; not for local.")
@click.option(
    "-p", "--storage-path", default="", shell_complete=complete_file, help="Path in the bucket; for local, a directory."
)
@click.option(
    "--credential",
    shell_complete=complete_credential,
    metavar="NAME",
    help="Credential to open the bucket with; see credential create.",
)
@metadata_file_option()
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
    metadata = None if metadata_file is None else read_metadata(metadata_file)
    uri = _build_uri(cloud, storage_name, storage_path)
    dataset = link_dataset(root, name, uri, metadata, region=region, credential=credential)
    click.echo(f"Dataset '{name}' is linked to {dataset.uri}.", err=True)


def _build_uri(cloud: str, storage_name: str | None, storage_path: str) -> str:
    backend = clouds()[cloud]
    if backend.is_local:
        if not storage_path:
            raise UsageError("--storage-path: give the directory that holds the files.")
        return str(Path(storage_path).absolute())
    if not storage_name:
        raise UsageError(f"--storage-name: give the bucket or container on {cloud}.")
    return f"{backend.schemes[0]}://{storage_name}/{storage_path.strip('/')}".rstrip("/")
