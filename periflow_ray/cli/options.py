"""Options and arguments that several commands share."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, time, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from periflow_ray.cli.complete import (
    CREDENTIAL_KEY,
    STORAGE_KEY,
    complete_credential,
    complete_file,
    complete_job,
    complete_sweep,
)
from periflow_ray.errors import UsageError

if TYPE_CHECKING:
    from periflow_ray.store.root import StorageRoot

Function = TypeVar("Function", bound=Callable[..., Any])

_RELATIVE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])", re.IGNORECASE)
_DATE = re.compile(r"\d{4}-?\d{2}-?\d{2}")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_BANDWIDTH = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)\s*([A-Za-z]+)(?:/s)?")
_BYTES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def storage_option(function: Function) -> Function:
    """Adds ``--storage`` and ``--storage-credential``, and gives the command a ``root: StorageRoot``."""
    function = click.option(
        "--storage-credential",
        metavar="NAME",
        expose_value=False,
        # Before --storage, whose callback opens the root with it.
        is_eager=True,
        callback=_note_credential,
        shell_complete=complete_credential,
        help="Credential that opens the storage root; see periflow-ray credential list.  "
        "[default: $PERIFLOW_STORAGE_CREDENTIAL, the config file, else the cloud's usual chain]",
    )(function)
    return click.option(
        "--storage",
        "root",
        metavar="URI",
        callback=_open_root,
        shell_complete=complete_file,
        help="Storage root: a path, s3://..., abfs://... or gs://...  [default: $PERIFLOW_STORAGE, the config file, "
        "else a directory of this user]",
    )(function)


def chosen_credential() -> str | None:
    """The name of the credential with which ``storage_option`` opened the running command's storage root."""
    name: str | None = click.get_current_context().meta[CREDENTIAL_KEY]
    return name


def upload_bandwidth_option(function: Function) -> Function:
    """Adds ``--upload-bandwidth`` as ``upload_bandwidth_bytes_per_s``."""
    return click.option(
        "--upload-bandwidth",
        "upload_bandwidth_bytes_per_s",
        metavar="SIZE",
        callback=lambda ctx, param, value: None if value is None else parse_bandwidth(value),
        help="Most that the checkpoint uploads of one node may use per second: 500kB, 50MB, 1GiB.  [default: no limit]",
    )(function)


def job_argument(function: Function) -> Function:
    """Adds the job's number as ``job_id``, which may be given as its name or as ``last``; wants ``storage_option``."""
    return click.argument("job_id", metavar="JOB", shell_complete=complete_job)(
        _with_number(function, "job_id", find_job)
    )


def only_job_argument(function: Function) -> Function:
    """As ``job_argument``, but a name has to be that of one job alone."""
    command = _with_number(function, "job_id", _find_only_job)
    return click.argument("job_id", metavar="JOB", shell_complete=complete_job)(command)


def sweep_argument(function: Function) -> Function:
    """Adds the sweep's number as ``sweep_id``, as ``job_argument`` does a job's."""
    command = _with_number(function, "sweep_id", find_sweep)
    return click.argument("sweep_id", metavar="SWEEP", shell_complete=complete_sweep)(command)


def find_job(root: StorageRoot, given: str) -> int:
    """The number of a job that the command line names; says which one it is where several have the name.

    Raises:
        UsageError, NotFoundError: see ``find_job_id``.
    """
    from periflow_ray.jobs.job_names import find_job_id

    return find_job_id(root, given, on_several=lambda job_ids: _tell_newest(given, job_ids))


def find_sweep(root: StorageRoot, given: str) -> int:
    """As ``find_job``, of a sweep."""
    from periflow_ray.jobs.job_names import find_job_id
    from periflow_ray.sweeps.documents import has_sweep

    return find_job_id(
        root,
        given,
        noun="sweep",
        is_meant=lambda record: record.sweep is None and has_sweep(root, record.job_id),
        on_several=lambda job_ids: _tell_newest(given, job_ids),
    )


def yes_option(function: Function) -> Function:
    """Adds ``-y`` as ``is_confirmed``: do not ask; see ``confirm``."""
    return click.option("-y", "--yes", "is_confirmed", is_flag=True, help="Do not ask.")(function)


def confirm(question: str, *, default: bool = False) -> None:
    """Ask a question that ``--yes`` answers.

    Raises:
        click.Abort: the answer is no.
        UsageError: there is nobody to ask.
    """
    try:
        click.confirm(question, abort=True, err=True, default=default)
    except click.Abort as abort:
        if isinstance(abort.__cause__ or abort.__context__, EOFError) and not sys.stdin.isatty():
            click.echo(err=True)
            raise UsageError("nobody is there to answer. To do it without being asked: --yes") from None
        raise


def since_option(function: Function) -> Function:
    """Adds ``--since`` as Unix seconds."""
    return click.option(
        "--since",
        metavar="TIME",
        callback=lambda ctx, param, value: None if value is None else parse_time(value),
        help="Submitted at or after this time: 2026-01-31, 2026-01-31T18:00, 2h, 3d.",
    )(function)


def until_option(function: Function) -> Function:
    """Adds ``--until`` as Unix seconds."""
    return click.option(
        "--until",
        metavar="TIME",
        callback=lambda ctx, param, value: None if value is None else parse_time(value, is_end=True),
        help="Submitted at or before this time; a date means its end.",
    )(function)


def parse_time(text: str, *, is_end: bool = False) -> float:
    """A moment in Unix seconds: an ISO 8601 date or time (local unless it names a zone), or an age like 2h or 3d.

    Args:
        is_end: a date alone means the end of that day, not its beginning.
    Raises:
        click.BadParameter: it is none of these.
    """
    given = text.strip()
    try:
        if relative := _RELATIVE.fullmatch(given):
            age = timedelta(**{_UNITS[relative[2].lower()]: float(relative[1])})
            return (datetime.now() - age).timestamp()
        # Python 3.10 does not read the Z.
        moment = datetime.fromisoformat(f"{given[:-1]}+00:00" if given.endswith("Z") else given)
        if is_end and _DATE.fullmatch(given):
            moment = datetime.combine(moment, time.max)
        return moment.timestamp()
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is not a time. Give 2026-01-31, 2026-01-31T18:00 or an age: 30m, 2h, 3d, 1w."
        ) from None


def parse_bandwidth(text: str) -> int:
    """Bytes per second of a size such as 50MB (10**6 each) or 1.5 GiB/s (2**30 each).

    Raises:
        UsageError: it is none.
    """
    match = _BANDWIDTH.fullmatch(text.strip())
    # Units as they are written: 50Mb/s would be megabits.
    num_bytes = int(float(match[1]) * _BYTES[match[2]]) if match and match[2] in _BYTES else 0
    if num_bytes < 1:
        raise UsageError(
            f"--upload-bandwidth: {text!r} is not a number of bytes per second above 0. Give a number and a unit "
            f"({', '.join(_BYTES)}), for example 50MB or 50MB/s."
        )
    return num_bytes


def _with_number(function: Function, name: str, find: Callable[[StorageRoot, str], int]) -> Function:
    @functools.wraps(function)
    def command(**arguments: Any) -> Any:
        arguments[name] = find(arguments["root"], arguments[name])
        return function(**arguments)

    return cast(Function, command)


def _find_only_job(root: StorageRoot, given: str) -> int:
    from periflow_ray.jobs.job_names import find_job_id

    def refuse(job_ids: list[int]) -> None:
        numbers = ", ".join(map(str, job_ids[:10]))
        raise UsageError(f"{len(job_ids)} jobs are called '{given}'. Name one by its number: {numbers}")

    return find_job_id(root, given, on_several=refuse)


def _tell_newest(given: str, job_ids: Sequence[int]) -> None:
    from periflow_ray.cli.plain_text import escape_controls

    text = f"{len(job_ids)} are called '{given}'; the newest is {job_ids[0]}, before it came {job_ids[1]}."
    click.echo(escape_controls(text), err=True)


def _note_credential(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    ctx.meta[CREDENTIAL_KEY] = value


def _open_root(ctx: click.Context, param: click.Parameter, value: str | None) -> StorageRoot | None:
    if ctx.resilient_parsing:
        ctx.meta[STORAGE_KEY] = value
        return None
    # Imported late: fsspec takes as long as all of --help.
    from periflow_ray.settings import choose_root

    chosen = choose_root(value, ctx.meta[CREDENTIAL_KEY])
    ctx.meta[CREDENTIAL_KEY] = chosen.credential
    return chosen.root
