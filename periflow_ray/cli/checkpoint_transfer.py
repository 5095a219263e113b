"""``checkpoint download``, ``upload``, ``create`` and ``verify``: the commands that read every byte."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from periflow_ray.cli.checkpoint import resolve_id
from periflow_ray.cli.complete import complete_checkpoint, complete_credential
from periflow_ray.cli.options import storage_option
from periflow_ray.cli.output import is_drawable, output_option, talk_console, tell_skipped, write_output
from periflow_ray.cli.tables import draw_table
from periflow_ray.errors import CorruptCheckpointError, StorageError, UsageError
from periflow_ray.jobs.user import user_name
from periflow_ray.store.checkpoints import find_checkpoint, restore, verify
from periflow_ray.store.checkpoints.damage import find_saved, set_aside, take_back
from periflow_ray.store.checkpoints.files import select_content
from periflow_ray.store.checkpoints.imports import link_checkpoint, upload_checkpoint_dir
from periflow_ray.store.checkpoints.manifest import Manifest, StoredEntry, StoredFile
from periflow_ray.store.checkpoints.restoring import is_partly_restored
from periflow_ray.store.checkpoints.verifying import Problem
from periflow_ray.store.checksum import is_checksum_of
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.size_text import format_size
from periflow_ray.store.transfer import Transfer
from periflow_ray.store.trees import TreeEntry, list_tree


@click.command()
@click.argument("checkpoint_id", metavar="ID", shell_complete=complete_checkpoint)
@click.option("-d", "--dest", type=click.Path(path_type=Path), help="Directory to make.  [default: ./NAME]")
@click.option(
    "--node",
    "node_rank",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Whose file, where nodes saved different files of one name.",
)
@storage_option
def download(checkpoint_id: str, dest: Path | None, node_rank: int, root: StorageRoot) -> None:
    """Copy a checkpoint's files to this machine, each compared with its checksum.

    The directory appears when all of it is there. A download that was cut short goes on where it ended when the
    same command is run again.

    \b
    Example:
      periflow-ray checkpoint download 12/step-00000400 -d ./resnet
      periflow-ray checkpoint download 12
    """
    manifest = find_checkpoint(root, resolve_id(root, checkpoint_id))
    files, entries = select_content(manifest, node_rank)
    target = dest or Path(manifest.checkpoint)
    size = sum(file.size for file in files)
    what = f"{len(files)} files, {format_size(size)}"
    if _has_files(target):
        if not _is_download_of(target, files, entries):
            raise UsageError(
                f"'{target}' is not empty and holds something else than this checkpoint. Give another directory: -d DIR"
            )
        click.echo(f"Checkpoint '{manifest.checkpoint_id}' is in '{target}' already: {what}, verified.", err=True)
        return
    try:
        with _progress("Downloading", size) as on_bytes:
            restore(root, manifest, node_rank, target, on_bytes=on_bytes)
    except (KeyboardInterrupt, OSError, StorageError):
        if is_partly_restored(target):
            click.echo("The files that have arrived are kept; the same command goes on from there.", err=True)
        raise
    click.echo(f"Checkpoint '{manifest.checkpoint_id}' is downloaded to '{target}': {what}, verified.", err=True)


@click.command()
@click.option("-n", "--name", required=True, help="Its name, which is its ID.")
@click.option(
    "-p", "--source-path", required=True, type=click.Path(path_type=Path), help="Directory with the checkpoint's files."
)
@click.option("--step", type=click.IntRange(min=0), default=0, help="Training steps done in it, if known.")
@storage_option
def upload(name: str, source_path: Path, step: int, root: StorageRoot) -> None:
    """Make a checkpoint of a directory of this machine; a template can name it under "checkpoint.input".

    \b
    Example:
      periflow-ray checkpoint upload -n resnet-base -p ./resnet
    """
    size = _measure(source_path)
    with _progress("Uploading", size) as on_bytes:
        manifest = upload_checkpoint_dir(
            root,
            source_path,
            name,
            step=step,
            created_by=user_name(),
            transfer=Transfer(root, on_bytes=on_bytes),
            on_skipped=tell_skipped,
        )
    click.echo(f"Checkpoint '{name}' is uploaded: {_describe(manifest)}.", err=True)


@click.command()
@click.option("-n", "--name", required=True, help="Its name, which is its ID.")
@click.option("-u", "--uri", required=True, help="Where the files are: a path, s3://..., abfs://... or gs://...")
@click.option(
    "--credential",
    shell_complete=complete_credential,
    help="Name of the credential that opens the URI, here and in jobs.",
)
@click.option("--step", type=click.IntRange(min=0), default=0, help="Training steps done in it, if known.")
@storage_option
def create(name: str, uri: str, credential: str | None, step: int, root: StorageRoot) -> None:
    """Make a checkpoint of files that stay where they are; each is read once for its checksum.

    \b
    Example:
      periflow-ray checkpoint create -n resnet-base -u s3://my-bucket/models/resnet
    """
    with talk_console().status("Reading") as status:
        num_bytes = 0

        def count(path: str, size: int) -> None:
            nonlocal num_bytes
            num_bytes += size
            status.update(f"Reading: {format_size(num_bytes)}")

        manifest = link_checkpoint(
            root, uri, name, step=step, credential=credential, created_by=user_name(), on_file=count
        )
    click.echo(f"Checkpoint '{name}' is linked to {manifest.uri}: {_describe(manifest)}.", err=True)


@click.command("verify")
@click.argument("checkpoint_id", metavar="ID", shell_complete=complete_checkpoint)
@storage_option
@output_option
def verify_command(checkpoint_id: str, root: StorageRoot, output: str) -> None:
    """Read every byte of a checkpoint again and compare it with what was saved. Exit code 1 if something differs.

    No job resumes from a checkpoint that differs; one that was found to be damaged before and is intact counts again.

    \b
    Example:
      periflow-ray checkpoint verify 12/step-00000400
      periflow-ray checkpoint verify 12 -o json
    """
    manifest, was_damaged = find_saved(root, resolve_id(root, checkpoint_id))
    with _progress("Verifying", manifest.size) as on_bytes:
        problems = verify(root, manifest, lambda file: on_bytes(file.size))
    _keep_verdict(root, manifest, problems, was_damaged)
    document = {
        "id": manifest.checkpoint_id,
        "is_intact": not problems,
        "num_files": len(manifest.files),
        "size_bytes": manifest.size,
        "problems": [{"file": problem.key, "problem": problem.text} for problem in problems],
    }

    def draw(console: Console) -> None:
        if problems:
            draw_table(
                console,
                ("File", "Problem"),
                [(problem.key, problem.text) for problem in problems],
                text_column="Problem",
            )
        else:
            console.print(f"Checkpoint '{manifest.checkpoint_id}' is intact: {_describe(manifest)}.")

    write_output(output, document, draw)
    if problems:
        raise CorruptCheckpointError(
            f"checkpoint '{manifest.checkpoint_id}' is not what was saved; see the files above"
        )


def _keep_verdict(root: StorageRoot, manifest: Manifest, problems: Sequence[Problem], was_damaged: bool) -> None:
    """Let the checkpoint count, or not, for everybody; who may only read here still gets the list."""
    keys = {file.key for file in manifest.files}
    damages = [problem for problem in problems if problem.key in keys]
    with contextlib.suppress(OSError, StorageError):
        if was_damaged and not damages:
            take_back(root, manifest)
        elif damages and not was_damaged and manifest.uri is None:
            set_aside(root, manifest.job_id, manifest.checkpoint, f"'{damages[0].key}' {damages[0].text}")


@contextlib.contextmanager
def _progress(text: str, size: int) -> Iterator[Callable[[int], None]]:
    """A bar with bytes per second on a terminal; yields what to call with each number of bytes."""
    console = talk_console()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not is_drawable(console)) as progress:
        task = progress.add_task(text, total=size)
        yield lambda num_bytes: progress.advance(task, num_bytes)


def _has_files(target: Path) -> bool:
    """Whether something is in the way.

    Raises:
        UsageError: it is not a directory, or it is where we are.
    """
    if not target.exists():
        return False
    if not target.is_dir():
        raise UsageError(f"'{target}' is not a directory. Give another one: -d DIR")
    if target.samefile(Path.cwd()):
        raise UsageError(f"'{target}' is the current directory. Give one that is made for the checkpoint: -d DIR")
    return any(target.iterdir())


def _measure(directory: Path) -> int:
    if not directory.is_dir():
        return 0
    return sum(file.stat.st_size for file in list_tree(directory)[0])


def _is_download_of(target: Path, files: Sequence[StoredFile], entries: Sequence[StoredEntry]) -> bool:
    found, found_entries = list_tree(target)
    if {file.path: file.stat.st_size for file in found} != {file.path: file.size for file in files}:
        return False
    if _links_of(found_entries) != _links_of(entries):
        return False
    return all(is_checksum_of(target / file.path, file.checksum) for file in files)


def _links_of(entries: Sequence[TreeEntry]) -> dict[str, str]:
    return {entry.path: entry.link_to for entry in entries if entry.link_to is not None}


def _describe(manifest: Manifest) -> str:
    return f"{len(manifest.files)} files, {format_size(manifest.size)}"
