"""``credential``: keys of clouds and services under names, kept in one file of this user."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from periflow_ray.cli.complete import complete_credential, complete_credential_type
from periflow_ray.cli.credential_values import ask_values, parse_values, read_from_environment
from periflow_ray.cli.format import NOTHING, format_time, iso_time
from periflow_ray.cli.lazy import LazyGroup
from periflow_ray.cli.options import confirm, yes_option
from periflow_ray.cli.output import output_option, write_output
from periflow_ray.cli.tables import build_fields, draw_panels, draw_table
from periflow_ray.credentials import (
    Credential,
    create_credential,
    credentials_path,
    delete_credential,
    list_credentials,
    read_credential,
)
from periflow_ray.credentials.credential_types import CREDENTIAL_TYPES, find_credential_type
from periflow_ray.errors import UsageError

_COMMANDS = {
    "create": ("periflow_ray.cli.credential:create", "Keep keys under a name."),
    "list": ("periflow_ray.cli.credential:list_command", "List credentials; never their secrets."),
    "view": ("periflow_ray.cli.credential:view", "Show a credential; never its secrets."),
    "edit": ("periflow_ray.cli.credential:edit", "Give a credential other values."),
    "delete": ("periflow_ray.cli.credential:delete", "Delete a credential."),
}
_HIDDEN = "(kept, not shown)"


@click.group(cls=LazyGroup, lazy_commands=_COMMANDS)
def credential() -> None:
    """Keys of clouds and services under names.

    They are kept in one file on this machine that only you can read. Commands, templates and jobs refer to a credential
    by its name; its values go nowhere else.

    \b
    Example:
      periflow-ray credential create team-s3 --type s3
      periflow-ray job list --storage s3://team-bucket/periflow --storage-credential team-s3
    """


_from_env_option = click.option(
    "--from-env", "is_from_env", is_flag=True, help="Take the values from the usual variables, as AWS_ACCESS_KEY_ID."
)
_from_file_option = click.option(
    "--from-file",
    "source",
    type=click.Path(allow_dash=True),
    metavar="FILE",
    help="Take the values from a file of JSON or KEY=VALUE lines; - is stdin.",
)


@click.command()
@click.argument("name")
@click.option(
    "--type",
    "type_name",
    required=True,
    metavar="TYPE",
    shell_complete=complete_credential_type,
    help=f"One of: {', '.join(CREDENTIAL_TYPES)}.",
)
@_from_env_option
@_from_file_option
def create(name: str, type_name: str, is_from_env: bool, source: str | None) -> None:
    """Keep keys under a name. Asks for them, and does not show what is typed.

    No option takes a secret, because everybody on this machine can read a command line.

    \b
    Examples:
      periflow-ray credential create team-s3 --type s3
      periflow-ray credential create team-s3 --type s3 --from-env
      periflow-ray credential create models --type gcs --from-file service-account.json
    """
    if any(known.name == name for known in list_credentials()):
        raise UsageError(
            f"credential '{name}' already exists. Give it other values: periflow-ray credential edit {name}"
        )
    create_credential(name, type_name, _collect_values(type_name, is_from_env, source))
    click.echo(f"Credential '{name}' is kept in {credentials_path()}.", err=True)


@click.command("list")
@output_option
def list_command(output: str) -> None:
    """List credentials: name, type, when created, and the values that are no secret.

    \b
    Example:
      periflow-ray credential list
    """
    known = list_credentials()

    def draw(console: Console) -> None:
        rows = [
            (
                each.name,
                each.type,
                ", ".join(f"{name}={value}" for name, value in each.shown_values.items()) or NOTHING,
                format_time(each.created_unix_s),
            )
            for each in known
        ]
        if rows:
            draw_table(console, ("Name", "Type", "Values", "Created"), rows, dropped_first=("Created", "Values"))

    write_output(output, [_document(each) for each in known], draw)
    if not known:
        click.echo("No credentials. Make one: periflow-ray credential create NAME --type TYPE", err=True)


@click.command()
@click.argument("name", shell_complete=complete_credential)
@output_option
def view(name: str, output: str) -> None:
    """Show a credential: which values it has, and those that are no secret.

    \b
    Example:
      periflow-ray credential view team-s3
    """
    found = read_credential(name)

    def draw(console: Console) -> None:
        fields = {"Name": found.name, "Type": found.type, "Created": format_time(found.created_unix_s)}
        fields |= {name: found.shown_values.get(name, _HIDDEN) for name in found.values}
        draw_panels(console, {"Credential": build_fields(fields)})

    write_output(output, _document(found), draw)


@click.command()
@click.argument("name", shell_complete=complete_credential)
@_from_env_option
@_from_file_option
def edit(name: str, is_from_env: bool, source: str | None) -> None:
    """Give a credential other values, all of them; its name and type stay.

    \b
    Example:
      periflow-ray credential edit team-s3
    """
    found = read_credential(name)
    values = _collect_values(found.type, is_from_env, source)
    create_credential(name, found.type, values, is_replacement=True)
    click.echo(f"Credential '{name}' has its new values.", err=True)


@click.command()
@click.argument("name", shell_complete=complete_credential)
@yes_option
def delete(name: str, is_confirmed: bool) -> None:
    """Delete a credential from this machine; the keys stay valid until you withdraw them at their service.

    \b
    Example:
      periflow-ray credential delete team-s3
    """
    read_credential(name)
    if not is_confirmed:
        confirm(f"Delete credential '{name}'? Jobs and roots that name it fail then.")
    delete_credential(name)
    click.echo(f"Credential '{name}' is deleted.", err=True)


def _collect_values(type_name: str, is_from_env: bool, source: str | None) -> dict[str, Any]:
    kind = find_credential_type(type_name)
    if is_from_env and source is not None:
        raise UsageError("--from-env and --from-file exclude each other.")
    if is_from_env:
        values, variables = read_from_environment(kind, os.environ)
        click.echo(f"Read from {', '.join(variables)}.", err=True)
        return dict(values)
    if source is None:
        return dict(ask_values(kind))
    where = "<stdin>" if source == "-" else source
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return parse_values(kind, content.decode(), where)
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "it is no text in UTF-8"
        raise UsageError(f"--from-file: '{where}' cannot be read: {reason}") from None


def _document(credential: Credential) -> dict[str, Any]:
    return {
        "name": credential.name,
        "type": credential.type,
        "created": iso_time(credential.created_unix_s),
        "values": credential.shown_values,
        "hidden_values": [name for name in credential.values if name not in credential.shown_values],
    }
