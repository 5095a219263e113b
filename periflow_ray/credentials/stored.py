"""Credentials by name, in one file that only this user can read; they never enter the storage root or a plan.

The file is ``credentials.json`` in the user's configuration directory; ``PERIFLOW_CREDENTIALS_FILE`` names another.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from periflow_ray import __version__
from periflow_ray.credentials.credential_types import CREDENTIAL_TYPES, check_values
from periflow_ray.documents import dump_document, parse_document
from periflow_ray.errors import DamagedDocumentError, NewerFormatError, NotFoundError, StorageError, UsageError
from periflow_ray.names import suggest_names
from periflow_ray.private_files import create_private, make_private_directories
from periflow_ray.user_dirs import config_dir

CREDENTIALS_FILE_VARIABLE = "PERIFLOW_CREDENTIALS_FILE"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ADVICE = "Restore the file, or delete it and create the credentials again."
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class Credential:
    """Keys of a service under a name; ``values`` are those of its type, see ``credential_types``."""

    name: str
    type: str
    # A log line or a traceback shows an object's repr.
    values: Mapping[str, str] = field(repr=False)
    created_unix_s: float

    @property
    def shown_values(self) -> dict[str, str]:
        """The values that are no secret; of a type that came with a later version, none."""
        if self.type not in CREDENTIAL_TYPES:
            return {}
        secret_names = CREDENTIAL_TYPES[self.type].secret_names
        return {name: value for name, value in self.values.items() if name not in secret_names}


@dataclass(frozen=True)
class _StoredCredential:
    type: str
    created_unix_s: float
    values: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class _CredentialsFile:
    credentials: Mapping[str, _StoredCredential]


def credentials_path() -> Path:
    """The file with this user's credentials, whether or not it exists."""
    default = config_dir() / "credentials.json"
    return Path(os.environ.get(CREDENTIALS_FILE_VARIABLE) or default).absolute()


def read_credential(name: str) -> Credential:
    """A credential of this machine's user.

    Raises:
        NotFoundError: there is none of that name; the message lists those there are.
        NewerFormatError: its type, or the file's format, came with a later version.
        StorageError: the file is damaged, or others may read it.
    """
    path = credentials_path()
    found = _find(_read(path), name, path)
    if found.type not in CREDENTIAL_TYPES:
        raise NewerFormatError(
            f"credential '{name}' in '{path}' is of type '{found.type}', which this version of periflow-ray "
            f"({__version__}) does not know. A later version does: pip install --upgrade periflow-ray"
        )
    return found


def list_credentials() -> list[Credential]:
    """All credentials of this machine's user, by name.

    Raises:
        StorageError: the file is damaged, or others may read it.
    """
    return [credential for _, credential in sorted(_read(credentials_path()).items())]


def create_credential(
    name: str, type: str, values: Mapping[str, object], *, is_replacement: bool = False
) -> Credential:
    """Store a credential.

    Args:
        name: 1 to 64 letters, digits, ``.``, ``_`` and ``-``.
        type: a key of ``CREDENTIAL_TYPES``.
        values: by name; a JSON document may also be a mapping.
        is_replacement: the name is taken, and gets these values.
    Raises:
        UsageError: the name, the type or a value cannot be used, or the name is taken.
        NotFoundError: it is to be replaced and does not exist.
        StorageError: the file cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"credential name {name!r} cannot be used: 1 to 64 letters, digits, '.', '_' and '-', first a letter or "
            "a digit."
        )
    credential = Credential(name, type, check_values(type, values), time.time())
    with _locked(credentials_path()) as path:
        known = _read(path)
        if is_replacement:
            _find(known, name, path)
        elif name in known:
            raise UsageError(
                f"credential '{name}' already exists. Give it other values: periflow-ray credential edit {name}"
            )
        _write(path, {**known, name: credential})
    return credential


def delete_credential(name: str) -> None:
    """Delete a credential.

    Raises:
        NotFoundError: there is none of that name.
        StorageError: the file cannot be used.
    """
    _find(_read(credentials_path()), name, credentials_path())
    with _locked(credentials_path()) as path:
        known = _read(path)
        known.pop(name, None)
        _write(path, known)


def _find(known: Mapping[str, Credential], name: str, path: Path) -> Credential:
    if name not in known:
        raise NotFoundError(
            f"credential '{name}' does not exist in '{path}' on machine '{platform.node()}'."
            f"{suggest_names(name, known, cutoff=0.5)} Known there: {', '.join(sorted(known)) or 'none'}. "
            f"Create it on that machine: periflow-ray credential create {name} --type TYPE"
        )
    return known[name]


def _read(path: Path) -> dict[str, Credential]:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read()
    except FileNotFoundError:
        return {}
    except OSError as err:
        raise StorageError(f"the credentials in '{path}' cannot be read: {err.strerror or err}") from err
    if mode & _OTHERS:
        # Not repaired in silence: who could read the keys may have read them.
        raise StorageError(
            f"the credentials in '{path}' may be read by others (mode {stat.S_IMODE(mode):04o}). "
            f"Take that right away: chmod 600 '{path}'; and replace the keys if somebody else uses this machine."
        )
    where = f"the credentials file '{path}'"
    try:
        stored = parse_document(_CredentialsFile, content, where, advice=_ADVICE)
    except DamagedDocumentError as err:
        # The cause holds the file's text, so it is left out.
        raise DamagedDocumentError(str(err)) from None
    return {name: _parse(name, entry, where) for name, entry in stored.credentials.items()}


def _parse(name: str, entry: _StoredCredential, where: str) -> Credential:
    if not isinstance(entry.values, dict):
        raise DamagedDocumentError(f"{where} is damaged: 'credentials.{name}.values' is no JSON object. {_ADVICE}")
    values = {key: str(value) for key, value in entry.values.items()}
    return Credential(name, entry.type, values, float(entry.created_unix_s))


@contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """Keep other writers out; gives the file behind a link, which must stay one."""
    target = Path(os.path.realpath(path))
    try:
        make_private_directories(target.parent)
        descriptor = os.open(target.with_name(f"{target.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as err:
        raise StorageError(f"credentials cannot be kept in '{path}': {err.strerror or err}") from err
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield target
    finally:
        os.close(descriptor)


def _write(path: Path, credentials: Mapping[str, Credential]) -> None:
    entries = {
        name: _StoredCredential(credential.type, credential.created_unix_s, dict(credential.values))
        for name, credential in credentials.items()
    }
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        create_private(partial, dump_document(_CredentialsFile(entries)), is_durable=True)
        partial.replace(path)
    except OSError as err:
        raise StorageError(f"the credentials in '{path}' cannot be written: {err.strerror or err}") from err
    finally:
        partial.unlink(missing_ok=True)
