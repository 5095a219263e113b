"""Where the values of a new credential come from: questions, environment variables, or a file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from periflow_ray.cli.choice import Choice
from periflow_ray.credentials.credential_types import CredentialType, CredentialValue, describe_alternatives
from periflow_ray.errors import UsageError
from periflow_ray.submit.env_file import parse_assignments


def ask_values(kind: CredentialType) -> dict[str, str]:
    """Ask for the values of a type; what is secret is not shown while it is typed."""
    names = list(kind.alternatives[0])
    if len(kind.alternatives) > 1:
        # An alternative is told from the others by its last value: account_key, sas_token, connection_string.
        by_last_name = {names[-1]: list(names) for names in kind.alternatives}
        chosen = click.prompt("What do you have", type=Choice(list(by_last_name)), err=True)
        names = by_last_name[chosen]
    values = {}
    for value in kind.values:
        if value.name in names or value.name in kind.optional_names:
            answer = _ask(value, is_optional=value.name not in names)
            if answer:
                values[value.name] = answer
    return values


def read_from_environment(kind: CredentialType, environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The values of a type from the variables in which they usually are, and the names of those variables.

    Raises:
        UsageError: too few are set; nothing in the message is a value.
    """
    found = {
        value.name: next(variable for variable in value.variables if environ.get(variable))
        for value in kind.values
        if any(environ.get(variable) for variable in value.variables)
    }
    names = next((names for names in kind.alternatives if set(names) <= found.keys()), None)
    if names is None:
        first_variables = {value.name: value.variables[0] for value in kind.values}
        sets = ", or ".join(" and ".join(first_variables[name] for name in names) for names in kind.alternatives)
        raise UsageError(f"--from-env: set {sets} in this shell first, or leave --from-env out to be asked.")
    values = {}
    for value in kind.values:
        if value.name in found and (value.name in names or value.name in kind.optional_names):
            text = environ[found[value.name]]
            values[value.name] = _read_document(Path(text)) if value.is_document else text
    return values, [found[name] for name in values]


def parse_values(kind: CredentialType, text: str, where: str) -> dict[str, object]:
    """The values of a type from a JSON object or lines of KEY=VALUE.

    A key is a value's name or one of its variables. A whole Google key file is the value of a gcs credential.

    Args:
        text: the file's content.
        where: name of the file, for messages.
    Raises:
        UsageError: it is neither; nothing in the message is a value.
    """
    document = _parse_json(text, where) if text.lstrip().startswith("{") else _parse_lines(text, where)
    names = {variable: value.name for value in kind.values if not value.is_document for variable in value.variables}
    if kind.values[0].is_document and kind.values[0].name not in document:
        return {kind.values[0].name: document}
    if not document:
        raise UsageError(f"{where} is empty; it must hold {describe_alternatives(kind)}.")
    return {names.get(key, key): value for key, value in document.items()}


def _ask(value: CredentialValue, *, is_optional: bool) -> str:
    if value.is_document:
        path: str = click.prompt("File with the service account's key (JSON)", err=True)
        return _read_document(Path(path).expanduser())
    answer: str = click.prompt(
        f"{value.name} (Enter for none)" if is_optional else value.name,
        default="" if is_optional else None,
        show_default=False,
        # A pipe shows nothing, and Python would warn that it cannot hide it.
        hide_input=value.is_secret and not _is_piped(),
        err=True,
    )
    return answer.strip()


def _is_piped() -> bool:
    try:
        return not os.isatty(sys.stdin.fileno())
    except (OSError, ValueError):
        return False


def _read_document(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(
            f"the key file '{path}' cannot be read: {getattr(err, 'strerror', None) or 'no text'}"
        ) from err


def _parse_json(text: str, where: str) -> dict[str, object]:
    try:
        document: dict[str, object] = json.loads(text)
    except ValueError as err:
        raise UsageError(f"{where} is not valid JSON: {err}") from None
    return document


def _parse_lines(text: str, where: str) -> dict[str, object]:
    values: dict[str, object] = {}
    for number, key, value in parse_assignments(text, where):
        if value is None:
            raise UsageError(f"{where}:{number}: not a line of KEY=VALUE (the file may also be a JSON object).")
        values[key] = value.strip()
    return values
