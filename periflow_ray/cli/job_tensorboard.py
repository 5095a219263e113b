"""``job tensorboard``: jobs in TensorBoard by their names, whatever storage they are in."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from periflow_ray.cli.complete import complete_job
from periflow_ray.cli.options import find_job, storage_option
from periflow_ray.errors import PeriflowRayError, UsageError
from periflow_ray.jobs import JobRecord, read_record
from periflow_ray.jobs.job_names import list_records
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot

_NUM_NEWEST = 20
_DEFAULT_PORT = 6006


@click.command()
@click.argument("jobs", metavar="[JOB]...", nargs=-1, shell_complete=complete_job)
@click.option(
    "--port", type=click.IntRange(min=1, max=65535), default=_DEFAULT_PORT, show_default=True, help="Its port."
)
@click.option(
    "--logdir",
    "log_dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Make this folder for a TensorBoard of yours, and start none.",
)
@storage_option
def tensorboard(jobs: tuple[str, ...], port: int, log_dir: Path | None, root: StorageRoot) -> None:
    """Show jobs in TensorBoard, each under its number and name; without JOB the newest 20. Ctrl-C ends it.

    In a storage root that is a folder running jobs go on in it; of a bucket it shows what was there when it started.

    \b
    Example:
      periflow-ray job tensorboard 3 4
      periflow-ray job tensorboard --logdir ./runs
    """
    if log_dir is None and importlib.util.find_spec("tensorboard") is None:
        raise PeriflowRayError("TensorBoard is not installed here: pip install tensorboard")
    if jobs:
        records = [read_record(root, find_job(root, given)) for given in dict.fromkeys(jobs)]
    else:
        records = [record for record in list_records(root) if record.sweep is None][:_NUM_NEWEST]
    with contextlib.ExitStack() as stack:
        target = log_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="periflow-tensorboard-")))
        names = fill_log_dir(root, records, target)
        if not names:
            raise UsageError("none of these jobs has metrics. They come from pf.metric({...}) in a job's script.")
        if log_dir is not None:
            click.echo(f"Wrote {', '.join(names)} to {log_dir}. Show them: tensorboard --logdir {log_dir}", err=True)
            return
        click.echo(f"Shows {', '.join(names)}. Ctrl-C ends it.", err=True)
        argv = ["--logdir", str(target), "--host", "localhost", "--port", str(port)]
        with contextlib.suppress(KeyboardInterrupt):
            subprocess.run([sys.executable, "-m", "tensorboard.main", *argv], check=False)


def fill_log_dir(root: StorageRoot, records: Sequence[JobRecord], log_dir: Path) -> list[str]:
    """A folder below ``log_dir`` for each job that has metrics; returns their names, such as ``3-cifar``.

    Raises:
        UsageError: something else is in the place of one of them.
    """
    names = []
    log_dir.mkdir(parents=True, exist_ok=True)
    for record in records:
        name = f"{record.job_id}-{record.name.replace('/', '_')}" if record.name else str(record.job_id)
        files = _find_files(root, record.job_id) if root.is_local else _copy_metrics(root, record.job_id, log_dir)
        if files is None:
            continue
        link = log_dir / name
        if link.is_symlink():
            link.unlink()
        try:
            link.symlink_to(files.resolve(), target_is_directory=True)
        except FileExistsError:
            raise UsageError(f"'{link}' is there already. Give another --logdir.") from None
        names.append(name)
    return names


def _find_files(root: StorageRoot, job_id: int) -> Path | None:
    files = root.local_path(job_key(job_id, "tensorboard"))
    return files if files.is_dir() else None


def _copy_metrics(root: StorageRoot, job_id: int, log_dir: Path) -> Path | None:
    """TensorBoard's files of a job whose storage root has none, because such files grow."""
    from periflow_ray.jobs.metrics import read_metrics
    from periflow_ray.jobs.tensorboard import TensorBoardWriter

    metrics = read_metrics(root, job_id)
    if not metrics:
        return None
    local = StorageRoot(str(log_dir.resolve() / ".copies"))
    local.delete(job_key(job_id, "tensorboard"))
    writer = TensorBoardWriter(local, job_id)
    writer.append(metrics)
    writer.close()
    return local.local_path(job_key(job_id, "tensorboard"))
