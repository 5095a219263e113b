"""From a storage URI and a credential to an fsspec file system that answers or fails in time."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import fsspec

from periflow_ray.errors import StorageError, UsageError

TIMEOUT_VARIABLE = "PERIFLOW_STORAGE_TIMEOUT_S"
_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 30.0
# An operation may take as long again for each of these that it moves.
_BYTES_PER_TIMEOUT = 1 << 20
# Workers of a transfer and whoever else uses the same root wait for connections beyond this number.
_MAX_CONNECTIONS = 64

_EXTRAS = {"s3": "aws", "s3a": "aws", "abfs": "azure", "abfss": "azure", "az": "azure", "gs": "gcp", "gcs": "gcp"}
_CREDENTIAL_TYPES = {"aws": "s3", "azure": "azure-blob", "gcp": "gcs"}
_CLOUD_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_")
_PUBLIC_VALUES = frozenset({"region", "endpoint_url", "account_name"})


def open_filesystem(
    uri: str,
    credential_values: Mapping[str, str] | None = None,
    *,
    variables: Mapping[str, str] | None = None,
    read_timeout_s: float | None = None,
) -> tuple[Any, str]:
    """The file system of a URI and the URI's path in it; nothing is asked of a server yet.

    Args:
        credential_values: as ``read_credential`` gives them; None leaves it to the cloud's usual chain.
        variables: cloud variables (``AWS_*``, ``AZURE_*``, ``GOOGLE_*``) that come before the environment's.
        read_timeout_s: how long a server may take to answer; by default ``PERIFLOW_STORAGE_TIMEOUT_S``, else 30.
    Raises:
        StorageError: the scheme is unknown, needs an extra that is not installed, or the credential does not fit.
    """
    if not uri:
        raise StorageError("the storage root's URI is empty; give a directory, s3://bucket/prefix, abfs://...")
    scheme = scheme_of(uri)
    extra = _EXTRAS.get(scheme)
    known = {**os.environ, **(variables or {})}
    timeout_s = read_timeout_s or read_timeout()
    try:
        options: dict[str, Any] = {}
        if extra == "aws":
            options = _s3_options(credential_values, known, timeout_s)
        elif extra == "azure":
            options = _azure_options(credential_values, known)
        elif extra == "gcp":
            options = _gcs_options(credential_values, timeout_s)
        # Neither listings nor instances are kept: others write below the same root, and an instance of another
        # thread's or a parent process's event loop must not be met again.
        fs, base = fsspec.core.url_to_fs(uri, use_listings_cache=False, skip_instance_cache=True, **options)
    except ImportError as err:
        hint = f": pip install 'periflow-ray[{extra}]'" if extra else f": {err}"
        raise StorageError(f"storage root '{uri}' needs a package that is not installed{hint}") from err
    except (ValueError, KeyError) as err:
        raise StorageError(f"storage root '{uri}' cannot be opened: {_reason(err, extra)}") from err
    if extra and not base.strip("/"):
        raise StorageError(f"storage root '{uri}' names no bucket or container: {scheme}://NAME/PREFIX")
    if extra == "aws":
        fs.retries = 1  # s3fs would try again by itself, below the retries of this project.
    elif extra == "azure":
        _limit_azure_client(fs, timeout_s)
        _keep_question_marks(fs)
    return fs, base


def scheme_of(uri: str) -> str:
    """The URI's scheme; ``file`` for a plain path."""
    scheme, separator, _ = uri.partition("://")
    return scheme if separator else "file"


def credential_type_of(uri: str) -> str | None:
    """The type of credential that opens a URI; None where there is none."""
    extra = _EXTRAS.get(scheme_of(uri))
    return _CREDENTIAL_TYPES[extra] if extra else None


def read_timeout(default_s: float = _READ_TIMEOUT_S) -> float:
    """Seconds that a server may take to answer: ``PERIFLOW_STORAGE_TIMEOUT_S``, else the default.

    Raises:
        UsageError: ``PERIFLOW_STORAGE_TIMEOUT_S`` is not a positive number.
    """
    text = os.environ.get(TIMEOUT_VARIABLE)
    if not text:
        return default_s
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = 0.0
    if not 0 < timeout_s < float("inf"):
        raise UsageError(f"{TIMEOUT_VARIABLE} is '{text}'; it must be a number of seconds above 0, for example 60.")
    return timeout_s


def time_limit(num_bytes: int) -> float:
    """Seconds that an operation which moves this many bytes may take before it counts as hanging.

    The clients' own timeouts do not see a server that stops reading what is sent to it.
    """
    timeout_s = read_timeout()
    return min(_CONNECT_TIMEOUT_S, timeout_s) + timeout_s * (1 + num_bytes / _BYTES_PER_TIMEOUT)


def cloud_variables() -> dict[str, str]:
    """This process's environment variables that decide how a cloud is reached."""
    return {name: value for name, value in os.environ.items() if name.startswith(_CLOUD_PREFIXES)}


def secrets_of(credential_values: Mapping[str, str] | None) -> tuple[str, ...]:
    """The values of a credential that no message may show."""
    values = credential_values or {}
    return tuple(value for name, value in values.items() if name not in _PUBLIC_VALUES and value)


def _s3_options(values: Mapping[str, str] | None, variables: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
    config = {
        "connect_timeout": min(_CONNECT_TIMEOUT_S, timeout_s),
        "read_timeout": timeout_s,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "max_pool_connections": _MAX_CONNECTIONS,
        # Building botocore's own text takes a tenth of the time of a small request.
        "user_agent": "periflow-ray",
        # TLS, or the signature over plain HTTP, guards the bytes already; many S3 servers know no other checksums.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    if values is None:
        values = _s3_values(variables)
    region = values.get("region")
    found = {
        "key": values.get("access_key_id"),
        "secret": values.get("secret_access_key"),
        "token": values.get("session_token"),
        "endpoint_url": values.get("endpoint_url") or _s3_endpoint(variables),
        "client_kwargs": {"region_name": region} if region else None,
    }
    return {"config_kwargs": config, **{name: value for name, value in found.items() if value}}


def _s3_values(variables: Mapping[str, str]) -> dict[str, str]:
    names = {
        "access_key_id": "AWS_ACCESS_KEY_ID",
        "secret_access_key": "AWS_SECRET_ACCESS_KEY",
        "session_token": "AWS_SESSION_TOKEN",
    }
    # Without the keys botocore goes through its chain: profiles, web identity, the machine's role.
    values = {name: variables.get(variable, "") for name, variable in names.items()}
    if not (values["access_key_id"] and values["secret_access_key"]):
        values = {}
    region = variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION")
    return {**values, "region": region} if region else values


def _s3_endpoint(variables: Mapping[str, str]) -> str | None:
    if variables.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    return variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL")


def _azure_options(values: Mapping[str, str] | None, variables: Mapping[str, str]) -> dict[str, Any]:
    if values is not None:
        # adlfs lets the environment's connection string win over other options, so the credential becomes one.
        return {"connection_string": values.get("connection_string") or _azure_connection_string(values)}
    names = {
        "connection_string": ("AZURE_STORAGE_CONNECTION_STRING",),
        "account_name": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"),
        "account_key": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY"),
        "sas_token": ("AZURE_STORAGE_SAS_TOKEN",),
        "client_id": ("AZURE_STORAGE_CLIENT_ID",),
        "client_secret": ("AZURE_STORAGE_CLIENT_SECRET",),
        "tenant_id": ("AZURE_STORAGE_TENANT_ID",),
    }
    found = {option: next(filter(None, map(variables.get, given)), None) for option, given in names.items()}
    return {option: value for option, value in found.items() if value}


def _azure_connection_string(values: Mapping[str, str]) -> str:
    account = values["account_name"]
    if values.get("account_key"):
        key = values["account_key"]
        return f"DefaultEndpointsProtocol=https;AccountName={account};AccountKey={key};EndpointSuffix=core.windows.net"
    sas_token = values["sas_token"].lstrip("?")
    return f"BlobEndpoint=https://{account}.blob.core.windows.net;SharedAccessSignature={sas_token}"


def _limit_azure_client(fs: Any, timeout_s: float) -> None:
    """Replace adlfs's client, whose own retries would hold an unreachable server's error back for minutes."""
    # Without a handler Python prints pages of warnings when no credential is found; the error says it, too.
    logging.getLogger("azure").addHandler(logging.NullHandler())
    client = fs.service_client
    fs.service_client = type(client)(
        client.url,
        credential=client.credential,
        retry_total=0,
        connection_timeout=min(_CONNECT_TIMEOUT_S, timeout_s),
        read_timeout=timeout_s,
    )


def _keep_question_marks(fs: Any) -> None:
    """Let adlfs take paths as they are: it would parse them as URIs, and store a file 'why?' as 'why'."""
    strip_protocol = fs._strip_protocol

    def strip(path: Any) -> Any:
        is_plain = isinstance(path, str) and "://" not in path
        return path.lstrip("/") if is_plain else strip_protocol(path)

    fs._strip_protocol = strip


def _gcs_options(values: Mapping[str, str] | None, timeout_s: float) -> dict[str, Any]:
    options: dict[str, Any] = {"requests_timeout": timeout_s}
    if values is not None:
        import json

        options["token"] = json.loads(values["service_account_json"])
    return options


def _reason(err: Exception, extra: str | None) -> str:
    if isinstance(err, KeyError):
        return f"the credential has no value '{err.args[0]}'"
    if extra == "azure":
        return (
            "no usable account is known; set AZURE_STORAGE_CONNECTION_STRING or AZURE_STORAGE_ACCOUNT_NAME, "
            "or name a credential"
        )
    if extra == "gcp":
        return "the credential's service_account_json is not JSON"
    return str(err)
